"""From a trained `DDUNet` to a file for a device, which is verified before it is written.

====================  ==========================================================================
convert               the whole way; `build_stages` is the part without verification and report
config                `ConversionConfig` and the targets
calibrate             the photos that calibrate and those that the file is verified on
graph, builder        the deploy graph: the network in a few kinds of layers
framework_layers
equalization          factors that bring the channels of a feature map to one range
bias_correction       biases take up what rounding the weights adds in the mean
ranges, scales        the range of each feature map; scales with which all kernels round alike
qat                   quantization-aware training, pruning and clustering
tensorflow_converter  the calls of TensorFlow's converter
passes                what is rewritten for which target (by `ddunet_keras.litert`)
verify, scoring       the same on every kernel, and near the float model
layer_errors          where quantization error arises
export                C sources and MediaPipe's metadata
====================  ==========================================================================
"""
