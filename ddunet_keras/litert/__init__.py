"""Works on any int8 `.tflite` file, with NumPy and ai-edge-litert alone.

========  ==================================================================================
model     reads, checks, edits and writes a file
run       runs photos through LiteRT and TensorFlow Lite Micro
schedule  order of operators and plan of the tensor arena
strips    computes the largest stages in horizontal strips
columns   merges neighbouring columns of narrow feature maps for XNNPACK
inspect   what a file costs on a device
========  ==================================================================================

Nothing here knows of DDUNet, Keras or TensorFlow.
"""
