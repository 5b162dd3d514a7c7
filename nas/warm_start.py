"""Weights of a trained supernet as the first ones of another, whose space lies within its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nas.checkpoint import load_checkpoint, load_header
from nas.errors import NasError, UsageError
from search_spaces.elastic import share, shared_index
from search_spaces.menu import MENU
from search_spaces.shared import SharedBlock
from search_spaces.supernet import Supernet


def origin_identity(path: str) -> str:
    """That of the trained supernet in a file. Raises UsageError when there is none."""
    return str(_header(path)["identity"])


@torch.no_grad()
def warm_start_(supernet: Supernet, path: str) -> None:
    """Give `supernet` the weights that its networks have in the supernet at `path`: leading channels, kernels' centres.

    A network of both begins with what it was in the first. Raises UsageError where the first holds no such weights.
    """
    tensors, header = _read(path)
    wider = header["space"]
    own = supernet.space.to_dict()
    for key in ("num_classes", "in_chans"):
        if getattr(supernet, key) != header[key]:
            raise UsageError(f"{_no(path)}: its {key} is {header[key]}, that of these images {getattr(supernet, key)}")
    for key in ("role_widths", "multiplex", "plugin"):
        if own.get(key) != wider.get(key):
            raise UsageError(f"{_no(path)}: its {key} is {wider.get(key)}, that of this space {own.get(key)}")
    bound = [mixer for mixer in supernet.space.mixers if MENU[mixer].token_bound]
    maps = [(max(space["choices"]["resolution"]), space["stem"]) for space in (wider, own)]
    if bound and maps[0] != maps[1]:
        raise UsageError(f"{_no(path)}: {', '.join(bound)} are bound to one size of the map, and it had another")
    for place, module in supernet.named_modules():
        if isinstance(module, SharedBlock) and any(f"{place}.{name}" in tensors for name in module.loans):
            raise UsageError(f"{_no(path)}: its mixers share less than those of this version; train it anew")
    for name, tensor in supernet.state_dict().items():
        if name not in tensors:
            raise UsageError(f"{_no(path)}: it has no {name}; offer only what its space offered")
        try:
            index = shared_index(tuple(tensors[name].shape), tuple(tensor.shape))
        except ValueError as error:
            raise UsageError(f"{_no(path)}: {name}: {error}; offer only what its space offered") from error
        tensor.copy_(share(tensors[name], index))


def _read(path: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    header = _header(path)
    try:
        return load_checkpoint(Path(path))[0], header
    except NasError as error:
        raise UsageError(f"{_no(path)}: it is damaged; give the supernet.safetensors of `nas train`") from error


def _header(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UsageError(f"{_no(path)}: there is no such file; give the supernet.safetensors of `nas train`")
    try:
        header = load_header(Path(path))
    except NasError as error:
        raise UsageError(f"{_no(path)}: it is no checkpoint; give the supernet.safetensors of `nas train`") from error
    if header.get("kind") != "supernet" or "step" not in header or header["step"] != header["train"]["steps"]:
        raise UsageError(f"{_no(path)}: it is no finished supernet; give the supernet.safetensors of `nas train`")
    return header


def _no(path: str) -> str:
    return f"train.warm_start cannot take {path}"
