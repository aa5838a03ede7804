"""Works on any int8 `.tflite` file, with NumPy and ai-edge-litert alone.

=========  =====================================================================================
model      reads, checks, edits and writes a file
nodes      the operators of a file: kinds, inputs, constants, work
soundness  whether LiteRT may run a stranger's file: the operators of a segmenter, as a table
run        runs photos through LiteRT and TensorFlow Lite Micro
child      calls a function in a process of its own, within limits
schedule   order of operators and plan of the tensor arena
strips     computes the largest stages in horizontal strips
columns    merges neighbouring columns of narrow feature maps for XNNPACK
inspect    what a file costs on a device: the report
edge_tpu   Coral's rules
vela       Arm's compiler for Ethos-U
boards     boards and what fits
=========  =====================================================================================

Nothing here knows of DDUNet, Keras or TensorFlow.
"""
