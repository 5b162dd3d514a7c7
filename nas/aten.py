"""What each aten op is to a device: free, a constant, or of some kind and size.

Tables one can read: an op that is in none of them is unknown, and tracing says so with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from hw_models.workload import Window


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Another view of the same bytes. A copy that a view makes necessary shows up as `clone` or `copy_`.
FREE_OPS = _names(
    """
    alias as_strided chunk detach diagonal expand expand_as lift_fresh narrow permute reshape select
    slice split split_with_sizes squeeze t transpose unbind unfold unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze view view_as_real _reshape_alias _unsafe_view movedim
    """
)

# Results that do not depend on the input image.
CONSTANT_OPS = _names(
    """
    arange empty empty_like empty_strided eye fill full full_like linspace new_empty new_full
    new_ones new_zeros ones ones_like scalar_tensor zero zeros zeros_like zeros_permuted
    empty_permuted tril_indices triu_indices
    """
)

ACTIVATIONS: Mapping[str, str] = {
    "relu": "relu",
    "hardtanh": "relu6",
    "relu6": "relu6",
    "clamp": "clamp",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "leaky_relu": "leaky_relu",
    "prelu": "leaky_relu",
    "_prelu_kernel": "leaky_relu",
    "abs": "abs",
    "neg": "neg",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "gelu": "gelu",
    "tanh": "tanh",
    "mish": "mish",
    "softplus": "softplus",
    "elu": "elu",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "reciprocal": "reciprocal",
    "erf": "erf",
    "sin": "sin",
    "cos": "cos",
}
"""aten name -> function name of an "activation" op."""

ARITHMETIC: Mapping[str, str] = {
    "add": "add",
    "sub": "sub",
    "rsub": "sub",
    "mul": "mul",
    "square": "square",
    "div": "div",
    "maximum": "max",
    "minimum": "min",
    "pow": "pow",
    "where": "select",
    "masked_fill": "select",
    "lerp": "lerp",
    "addcmul": "addcmul",
    **dict.fromkeys(_names("eq ne lt le gt ge"), "compare"),
    **dict.fromkeys(_names("bitwise_not bitwise_and bitwise_or logical_not logical_and"), "compare"),
}
"""aten name -> function name of an "elementwise" op."""

REDUCTIONS: Mapping[str, str] = {
    "mean": "mean",
    "sum": "sum",
    "amax": "max",
    "max": "max",
    "amin": "min",
    "var": "var",
    "var_mean": "var",
    "std": "var",
    "std_mean": "var",
    "linalg_vector_norm": "norm",
    "norm": "norm",
    "cumsum": "cumsum",
    "argmax": "max",
    "logsumexp": "logsumexp",
}
"""aten name -> function name of a "reduce" op."""

POOLS: Mapping[str, str] = {
    "avg_pool2d": "avg",
    "max_pool2d_with_indices": "max",
    "max_pool2d": "max",
    "avg_pool1d": "avg",
}
POOLED = [[-1, -2], True]
"""Axes of the mean that torch takes for adaptive pooling to one position, which keeps them: hardly anybody else writes
them in this order. It is "avg" here, as a runtime has a kernel of its own for it that it does not use for other means.
"""

ADAPTIVE_POOLS: Mapping[str, str] = {"_adaptive_avg_pool2d": "avg", "adaptive_max_pool2d": "max"}
COPIES: Mapping[str, str] = {
    "cat": "concat",
    "stack": "concat",
    "constant_pad_nd": "pad",
    "reflection_pad2d": "pad",
    "replication_pad2d": "pad",
    "roll": "roll",
    "repeat": "repeat",
    "repeat_interleave": "repeat",
    "flip": "flip",
    "im2col": "unfold",
    "col2im": "fold",
    "pixel_shuffle": "pixel_shuffle",
    "pixel_unshuffle": "pixel_unshuffle",
    "native_channel_shuffle": "shuffle",
    "channel_shuffle": "shuffle",
}
"""aten name -> function name of a "copy" op."""

GATHERS = frozenset(["index", "index_select", "gather", "embedding", "take_along_dim", "masked_select"])
RESIZES = _names(
    """
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa _upsample_nearest_exact2d grid_sampler_2d
    """
)
ALIASES: Mapping[str, str] = {"_to_copy": "clone", "contiguous": "clone"}
MATRIX_OPS = frozenset({"convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm"})


@dataclass(frozen=True, slots=True)
class Description:
    """What one aten call is: the fields of an `Op` that do not depend on the graph."""

    kind: str
    function: str = ""
    gemm: tuple[int, int, int, int] | None = None
    window: Window | None = None
    extent: int = 1


def describe(name: str, args: tuple[Any, ...], output: Tensor) -> Description | None:
    """Kind and sizes of the aten op `name` called with `args`; None for an op no table knows."""
    if name in ACTIVATIONS:
        return Description("activation", ACTIVATIONS[name])
    if name in ARITHMETIC:
        return _describe_arithmetic(name, args)
    if name in REDUCTIONS:
        function = "avg" if name == "mean" and list(args[1:3]) == POOLED else REDUCTIONS[name]
        return Description("reduce", function, extent=max(1, args[0].numel() // max(1, output.numel())))
    if name in COPIES:
        return Description("copy", COPIES[name])
    if name in GATHERS:
        return Description("gather")
    if name in RESIZES:
        return Description("resize", "grid_sample" if name == "grid_sampler_2d" else "")
    if name in POOLS:
        return Description("pool", POOLS[name], window=_pool_window(args), extent=prod(_pair(args[1])))
    if name in ADAPTIVE_POOLS:
        extent = max(1, args[0].numel() // max(1, output.numel()))
        if args[0].shape[-1] * args[0].shape[-2] == extent:
            return Description("reduce", ADAPTIVE_POOLS[name], extent=extent)
        kernel = (-(-args[0].shape[-2] // output.shape[-2]), -(-args[0].shape[-1] // output.shape[-1]))
        return Description("pool", ADAPTIVE_POOLS[name], window=Window(kernel, kernel), extent=extent)
    special = _SPECIAL.get(name)
    return special(args, output) if special else None


def _describe_arithmetic(name: str, args: tuple[Any, ...]) -> Description:
    if name == "pow":
        squares = isinstance(args[1], int | float) and args[1] == 2
        return Description("elementwise", "square") if squares else Description("activation", "pow")
    return Description("elementwise", ARITHMETIC[name])


def _convolution(args: tuple[Any, ...], output: Tensor) -> Description:
    data, weight, _, stride, _, dilation, transposed, _, groups = args[:9]
    kernel = weight.shape[2:]
    sides = _pair(kernel) if len(kernel) < 3 else (prod(kernel[:-1]), kernel[-1])  # a third axis counts as height
    window = Window(sides, _pair(stride[-2:]), _pair(dilation[-2:]), groups, transposed)
    if transposed:
        positions = data.shape[0] * prod(data.shape[2:])
        gemm = (groups, positions, weight.shape[1] * prod(kernel), weight.shape[0] // groups)
    else:
        positions = output.shape[0] * prod(output.shape[2:])
        gemm = (groups, positions, weight.shape[0] // groups, weight.shape[1] * prod(kernel))
    return Description("conv", gemm=gemm, window=window)


def _mm(args: tuple[Any, ...], output: Tensor) -> Description:
    left = args[-2]
    return Description("matmul", gemm=(1, output.shape[0], output.shape[1], left.shape[1]))


def _bmm(args: tuple[Any, ...], output: Tensor) -> Description:
    left = args[-2]
    return Description("matmul", gemm=(output.shape[0], output.shape[1], output.shape[2], left.shape[2]))


def _softmax(args: tuple[Any, ...], output: Tensor) -> Description:
    return Description("softmax", extent=output.shape[args[1]])


def _layer_norm(args: tuple[Any, ...], output: Tensor) -> Description:
    return Description("norm", "layer", extent=prod(args[1]))


def _group_norm(args: tuple[Any, ...], output: Tensor) -> Description:
    _, _, _, _, channels, positions, groups, _ = args
    return Description("norm", "group", extent=channels // groups * positions)


def _rms_norm(args: tuple[Any, ...], output: Tensor) -> Description:
    return Description("norm", "rms", extent=prod(args[1]))


def _batch_norm(args: tuple[Any, ...], output: Tensor) -> Description:
    return Description("scale", "batchnorm")


_SPECIAL: Mapping[str, Callable[[tuple[Any, ...], Tensor], Description]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "mm": _mm,
    "addmm": _mm,
    "bmm": _bmm,
    "baddbmm": _bmm,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "_safe_softmax": _softmax,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_fused_rms_norm": _rms_norm,
    "rms_norm": _rms_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
}


def _pool_window(args: tuple[Any, ...]) -> Window:
    kernel = _pair(args[1] if len(args[1]) == 2 else args[1][0])
    stride = _pair(args[2] if len(args[2]) == 2 else args[2][0]) if len(args) > 2 and args[2] else kernel
    return Window(kernel, stride)


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of a size that torch may also give as one number; one axis of a 1-d convolution is the
    width.
    """
    values = (value, value) if isinstance(value, int) else tuple(value)
    return (int(values[0]), int(values[1])) if len(values) == 2 else (1, int(values[0]))
