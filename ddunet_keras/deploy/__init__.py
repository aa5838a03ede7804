"""From a trained network to a file for a device, which is verified before it is written.

=============================  =================================================================
convert                        the whole way; `build_stages` is the part before the verification
config                         `ConversionConfig` and the targets
calibrate                      the photos that calibrate, and others to verify on
graph, builder,                the deploy graph: the network in a few kinds of layers, for one
framework_layers               image at a time
network_graph                  the same of the networks that DDUNet is compared with
equalization                   factors that bring the channels of a feature map to one range
qat                            quantization-aware training, pruning and clustering
tensorflow_converter           the two calls of TensorFlow's converter
ranges, scales                 what range and scale each feature map gets in int8
bias_correction                biases take up what rounding adds in the mean
passes                         what rewrites an int8 model for its target, in order
verify, scoring                the same on every kernel, and near the float model
layer_errors                   where quantization error arises
export                         C sources for microcontrollers, metadata for Android
=============================  =================================================================

Importing this package imports neither Keras nor TensorFlow; its `verify` and `export` never do.
"""
