"""The other networks of the paper's Table I, and UCloudNet, to compare DDUNet with.

`ddunet_keras.build_network("unet", image_shape=(304, 304, 3))` builds one; `NETWORKS` says what
each is. Nothing here imports Keras.

=======================  ==========================================================================
architectures            `NETWORKS`: their names, sizes and sources
network                  `ComparedNetwork`: any of them as a Keras model
layer_factory            the layers that they are made of
unet, segcloud           U-Net; SegCloud in two readings
cloudunet, cloudunetv2   CloudU-Net; CloudU-Netv2, with attention in the middle
pspnet, deeplabv3plus    PSPNet on MobileNet; DeepLabV3+ on MobileNetV2
masegcloud, cloudsegnet  MA-SegCloud; CloudSegNet
ucloudnet                UCloudNet, which reads the authors' weights
=======================  ==========================================================================
"""
