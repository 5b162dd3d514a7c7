"""Token mixers: one file per family, one row per mixer in `MIXERS`. What a mixer must have: `contract.TokenMixer`.

Weights are shared by taking, of every tensor of the widest mixer, the leading channels and the centre of the kernel.
A mixer must therefore keep its parameters in tensors of which a prefix is the smaller mixer: heads in separate q, k, v,
groups of channels with different roles in separate tensors. Weights that are not learned are buffers.
`tests/search_spaces/test_mixers.py` tries every row.
"""

from search_spaces.mixers.attention import (
    LinearAttention,
    MultiQueryAttention,
    MultiScaleLinearAttention,
    SelfAttention,
)
from search_spaces.mixers.branches import DynaMixer, HireMLP, WaveMLP
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.conv import ConvFirst, DepthwiseConv, FusedMBConv, InceptionConv, MBConv, SepConv
from search_spaces.mixers.gated import DilatedConv, FFNAttention, GatedConv2, GatedConv3
from search_spaces.mixers.neighbours import HaloAttention, OutlookAttention
from search_spaces.mixers.pooling import Pooling, PoolingConv, SkipMixer
from search_spaces.mixers.positional import GatedPositionalAttention
from search_spaces.mixers.reparam import DilatedDepthwise, LargeKernelConv, RepMixer
from search_spaces.mixers.shifts import AxialConv, MixShift, ShiftMLP
from search_spaces.mixers.sparse import AngularAttention, ClusterAttention, PooledAttention, WindowAttention
from search_spaces.mixers.tokens import RaftMLP, RandomMixing, SpatialMLP, TokenGate
from search_spaces.mixers.wavelet import WaveletMixer

MIXERS: dict[str, type[TokenMixer]] = {
    "identity": SkipMixer,
    "pool": Pooling,
    "dwconv": DepthwiseConv,
    "sepconv": SepConv,
    "inception": InceptionConv,
    "mbconv": MBConv,
    "relu_linear": LinearAttention,
    "mhsa": SelfAttention,
    "pool_dw": PoolingConv,
    "largekernel": LargeKernelConv,
    "repmixer": RepMixer,
    "fused_mbconv": FusedMBConv,
    "mldc": DilatedConv,
    "mldc_dw": DilatedDepthwise,
    "ffn_attn": FFNAttention,
    "gnconv_o2": GatedConv2,
    "gnconv_o3": GatedConv3,
    "relu_linear_ms": MultiScaleLinearAttention,
    "mqa": MultiQueryAttention,
    "spatial_mlp": SpatialMLP,
    "random": RandomMixing,
    "convfirst": ConvFirst,
    "window": WindowAttention,
    "linear_sra": PooledAttention,
    "paca": ClusterAttention,
    "castling": AngularAttention,
    "s2mlp": ShiftMLP,
    "mixshift": MixShift,
    "axial_global": AxialConv,
    "raft_mlp": RaftMLP,
    "nin_gate": TokenGate,
    "halo": HaloAttention,
    "gpsa": GatedPositionalAttention,
    "hire_mlp": HireMLP,
    "wave_mlp": WaveMLP,
    "dynamixer": DynaMixer,
    "wavemix": WaveletMixer,
    "outlook": OutlookAttention,
}

__all__ = ["MIXERS", "TokenMixer"]
