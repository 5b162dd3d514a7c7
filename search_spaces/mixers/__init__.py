"""Token mixers: one file per family, one row per mixer in `MIXERS`.

A mixer is an `nn.Module` from [batch, dim, height, width] to the same shape, built by
`Mixer(dim, kernel=, expansion=, role_width=, activation=)`, with four class attributes:

kernels: the kernel sizes it can be built with, small to large; (0,) when it has none.
norm_after: the block's norm follows the mixer (so that BatchNorm folds into it) instead of preceding it.
replaces_block: the mixer is token and channel mixer in one (mbconv); norm and MLP of the block go.
late_only: quadratic in the number of tokens, offered in the last two stages only.

A mixer whose norm precedes it has `norm_consumers()`, the 1x1 convolutions into which BatchNorm folds, and
`output_layer()`, its last layer with weights. One whose norm follows may have `fold_norm_after_(norm)`.

Weights are shared by taking, of every tensor of the widest mixer, the leading channels and the centre of the kernel.
A mixer must therefore keep its parameters in tensors of which a prefix is the smaller mixer: heads in separate q, k, v.
"""

from search_spaces.mixers.attention import LinearAttention, SelfAttention
from search_spaces.mixers.conv import DepthwiseConv, InceptionConv, MBConv, SepConv
from search_spaces.mixers.pooling import Pooling, SkipMixer

MIXERS = {
    "identity": SkipMixer,
    "pool": Pooling,
    "dwconv": DepthwiseConv,
    "sepconv": SepConv,
    "inception": InceptionConv,
    "mbconv": MBConv,
    "relu_linear": LinearAttention,
    "mhsa": SelfAttention,
}

__all__ = ["MIXERS"]
