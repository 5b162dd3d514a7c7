"""What a token mixer is, to everything that builds, shares, folds, costs and exports it."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class TokenMixer(nn.Module):
    """Base of the mixers: [batch, dim, height, width] to the same shape. The class attributes are its contract.

    A mixer is built by `Mixer(dim, kernel=, expansion=, role_width=, activation=)`, with `size=` besides when it is
    `token_bound` or `sized`. Where its norm is decides what else it must have:

    before (default): `norm_consumers()`, the 1x1 convolutions into which BatchNorm folds; without it the folded norm
        stays, as a depthwise 1x1 convolution. `output_layer()`, its last layer with weights, which starts small.
    after (`norm_after`): `fold_norm_after_(norm)` may merge the BatchNorm behind it; without it likewise.
    inside (`norm_inside`): it has its own; `output_layer()` is then its last norm or layer.

    What else folds (branches, a scale, a BatchNorm outside a `ConvNorm`) it merges itself, in `fold_()`. It computes
    with layers and operations that have a rule in `nas/quantize/graph.py`; what has none is named when it is tried.
    """

    kernels: ClassVar[tuple[int, ...]] = (0,)
    """Kernel sizes in pixels it can be built with, small to large; (0,) when there is nothing to choose."""
    norm_after: ClassVar[bool] = False
    """The block's norm follows the mixer, which begins with a padded convolution, so that BatchNorm folds exactly."""
    norm_inside: ClassVar[bool] = False
    """The mixer has BatchNorms of its own; the block puts none around it."""
    residual_inside: ClassVar[bool] = False
    """The mixer adds its input itself, to fold it into its kernel. Needs `norm_inside`."""
    replaces_block: ClassVar[bool] = False
    """Token and channel mixer in one: the block has no channel mixer besides. Needs `norm_inside`."""
    expands: ClassVar[bool] = False
    """Weights, or what it computes, depend on `expansion`. The others are made once for all expansions; those with
    `replaces_block` are never taken for such."""
    gated: ClassVar[bool] = False
    """It has a hidden layer of `make_divisible(dim * expansion)` channels, and behind it a module `gate`, an Identity
    that the block may replace. Needs `replaces_block`."""
    channel_matrices: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(name of a weight of its own, the layer of an MLP of its expansion, "fc1" or "fc2", whose weight does the same).
    In a supernet they are one tensor. Needs `replaces_block`, and a BatchNorm behind each, which gives it its scale."""
    late_only: ClassVar[bool] = False
    """Quadratic in the number of tokens: offered in the last two stages only."""
    sized: ClassVar[bool] = False
    """It is given `size=` too, but is legal at any: a smaller map's weights are the same, or the middle of them."""
    token_bound: ClassVar[bool] = False
    """Weights depend on the map's `size` in pixels a side: legal at one resolution only."""
