"""Works on any int8 `.tflite` file, with NumPy and ai-edge-litert alone.

==========================  ====================================================================
model, sharing_builder      reads, checks, edits and writes a file
nodes                       the operators of a file: kinds, inputs, constants, work
soundness, shapes           whether LiteRT may run a stranger's file, as a table of operators
run                         runs photos through LiteRT and TensorFlow Lite Micro (TFLM)
child                       calls a function in a process of its own, within limits
memory, arena_size          what lives in TFLM's arena, and when; the bytes that TFLM takes
esp_nn                      the scratch memory of ESP-NN's kernels on an ESP32-S3
cleanup, order, arena       passes: what no device reads, order of operators, plan of the arena
rows, regions, strips       a pass: the largest stages in horizontal strips
schedule                    runs these passes so that a model fits into a given memory
columns, packing,           a pass: columns of narrow feature maps packed for XNNPACK
packing_cost
control_dependencies        a pass: operators wait for a Softmax
inspect, report_text,       what a file costs on a device: the report
report_plot, boards
edge_tpu, vela              Coral's rules; Arm's compiler for Ethos-U
==========================  ====================================================================

Nothing here knows of DDUNet, Keras or TensorFlow.
"""
