"""How a tensor of the widest layer becomes that of a narrower one: leading channels, centre of the kernel.

This is the whole of weight sharing (Once-for-All, arXiv:1908.09791; AutoFormer, arXiv:2107.00651): a mixer is written
once, as a plain module, and a narrower one runs the same code on slices.
"""

from __future__ import annotations

from torch import Tensor

Index = tuple[slice, ...]


def shared_index(full: tuple[int, ...], wanted: tuple[int, ...]) -> Index | None:
    """Index of the part of a tensor of shape `full` that a layer with shape `wanted` shares; None for all of it.

    Dimensions 0 and 1 (output and input channels) take a prefix; further ones (kernel height and width) the centre.
    Raises ValueError when `wanted` does not fit.
    """
    if full == wanted:
        return None
    if len(full) != len(wanted) or any(small > large for small, large in zip(wanted, full, strict=True)):
        raise ValueError(f"a tensor of shape {wanted} must fit into one of shape {full}")
    index = []
    last = max(dim for dim, (small, large) in enumerate(zip(wanted, full, strict=True)) if small != large)
    for dim, (small, large) in enumerate(zip(wanted[: last + 1], full, strict=False)):
        start = 0 if dim < 2 else (large - small) // 2
        index.append(slice(start, start + small))
    return tuple(index)


def share(tensor: Tensor, index: Index | None) -> Tensor:
    """The part of `tensor` at `index`, contiguous, differentiable; the tensor itself for None."""
    return tensor if index is None else tensor[index].contiguous()
