"""From a trained `DDUNet` to a file for a device, and what it costs and computes there.

==========  ====================================================================================
convert     the whole way: graph, quantization, memory, verification, report
graph       the network as plain layers with one image a batch
quantize    float32, float16 and int8 files; calibration, quantization-aware training
flatbuffer  reads and writes `.tflite`
memory      order of operators and plan of the arena
strips      full-size stages in horizontal strips
verify      the same image through float, LiteRT and TensorFlow Lite Micro
targets     what a file costs, and where it fits
codegen     C arrays and metadata
==========  ====================================================================================

`graph` and `quantize` import Keras, the rest does not; TensorFlow comes with the first conversion.
"""
