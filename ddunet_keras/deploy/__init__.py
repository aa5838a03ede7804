"""From a trained `DDUNet` to a file for a device, and what it costs and computes there.

=============================  =================================================================
config                         what can be asked of a conversion
calibrate                      the photos that calibrate, and others to verify on
convert                        the whole way, one step after the other
graph, builder,                the network as plain layers, for one image at a time
framework_layers
equalization                   channels of a feature map brought to one range
qat                            training before the quantization
tensorflow_converter           the two calls of TensorFlow's converter
ranges, scales                 what range and scale each feature map gets in int8
passes                         what rewrites an int8 model for its target, in order
verify, scoring                the same photos through float, LiteRT and TensorFlow Lite Micro
layer_errors                   where quantization error arises
export                         C sources for microcontrollers, metadata for Android
=============================  =================================================================

Importing this package imports neither Keras nor TensorFlow; its `verify` and `export` never do.
"""
