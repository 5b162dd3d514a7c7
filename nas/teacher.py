"""Networks that teach others: any timm model whose weights lie on this machine, or a network of the supernet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.accuracy import image_batches, recalibrate_batchnorm
from nas.data.bundle import DataBundle
from nas.errors import UsageError
from nas.objectives import suggestion
from nas.recipe import resized
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet

_NORM_IMAGES = 256
"""Training images that estimate the BatchNorm statistics of a teacher from the supernet."""


@dataclass(frozen=True)
class Teacher:
    """A frozen network. Called with normalised images of the data set [n, channels, h, w] it gives probabilities [n,
    classes]; it sees them at its own resolution (None: as they come), shifted and scaled to its own normalisation."""

    network: nn.Module
    resolution: int | None
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        seen = images if self.resolution is None else resized(images, self.resolution)
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=seen.device.type == "cuda"):
            logits = self.network(seen * self.scale + self.shift)
        return logits.float().softmax(dim=1)


def load_teacher(word: str, bundle: DataBundle, device: torch.device | str = "cpu") -> Teacher:
    """The timm model that `word` names: `NAME` (its pretrained weights must be in the local cache), `NAME:FILE` (a
    safetensors file of its weights), or a folder with config.json and model.safetensors, such as `nas export` writes.

    Raises UsageError when there is no such model, no such weights here, or it has other classes than the data.
    """
    network = _timm_network(word)
    classes = int(getattr(network, "num_classes", 0))
    if classes != bundle.num_classes:
        raise UsageError(
            f"teacher {word} has {classes} classes, but the data has {bundle.num_classes}; name one that was trained "
            "on the same classes"
        )
    config: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    channels, side, _ = config.get("input_size") or (bundle.in_chans, 0, 0)
    if channels != bundle.in_chans:
        raise UsageError(f"teacher {word} takes {channels} channels, but the images have {bundle.in_chans}")
    mean, std = (
        _per_channel(config.get(key) or own, device) for key, own in (("mean", bundle.mean), ("std", bundle.std))
    )
    ours, our_std = _per_channel(bundle.mean, device), _per_channel(bundle.std, device)
    network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Teacher(network, side or None, our_std / std, (ours - mean) / std)


def largest_teacher(supernet: Supernet, arch: Architecture, bundle: DataBundle, device: torch.device | str) -> Teacher:
    """The network of `supernet` with the kinds of `arch` (mixers, norm, stem, gate, ...) and the largest of every size,
    resolution included: what the in-place distillation of the supernet's training learned from."""
    big = largest(supernet.space, arch)
    network = supernet.subnet(big)
    rows = np.random.default_rng(0).permutation(len(bundle.train))[:_NORM_IMAGES]

    def images() -> Iterator[Tensor]:
        yield from (x for x, _ in image_batches(bundle.train, rows, big.resolution, 64))

    recalibrate_batchnorm(network, images())
    one, none = _per_channel([1.0], device), _per_channel([0.0], device)
    return Teacher(network.to(device).eval().requires_grad_(False), big.resolution, one, none)


def largest(space: SearchSpace, arch: Architecture) -> Architecture:
    """`arch` with every size (depth, width, expansion, resolution, ...) at its largest. Blocks that the greater depth
    adds take the choices of the last block that `arch` has in the stage."""
    genome = space.encode(arch)
    for choice in space.choices:
        prefix, _, word = choice.name.rpartition(".")
        if choice.is_size:
            genome[choice.name] = choice.values[-1]
        elif ".block" in prefix:
            stage, _, number = prefix.partition(".block")
            last = len(arch.stages[int(stage.removeprefix("stage")) - 1].blocks)
            source = f"{stage}.block{last}.{word}"
            if int(number) > last and genome[source] in choice.values:
                genome[choice.name] = genome[source]
    return space.decode(genome)


def _timm_network(word: str) -> nn.Module:
    import timm

    if Path(word).is_dir():
        return _from_folder(Path(word))
    name, colon, file = word.partition(":")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(
            f"teacher {word!r} is neither a folder nor a timm model; {suggestion(name, timm.list_models())}"
        )
    if colon:
        return _from_file(name, Path(file))
    model: nn.Module = timm.create_model(name)
    path = _cached_weights(getattr(model, "pretrained_cfg", {}))
    if path is None:
        raise UsageError(
            f"the weights of teacher {name} are not on this machine; give a file as {name}:FILE.safetensors, or a "
            "folder that nas export wrote"
        )
    return _from_file(name, path)


def _from_file(name: str, path: Path) -> nn.Module:
    """Never a pickle: loading one runs what it holds."""
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors" or not path.is_file():
        raise UsageError(f"teacher {name} wants a .safetensors file of its weights, but got {str(path)!r}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}); name another file for teacher {name}") from error
    heads = [key for key in weights if key.endswith(("fc.weight", "head.weight", "classifier.weight"))]
    arguments: dict[str, Any] = {"num_classes": len(weights[heads[-1]])} if heads else {}
    model: nn.Module = timm.create_model(name, **arguments)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise UsageError(f"{path} does not hold weights of {name} ({line[:120]})") from error
    return model


def _from_folder(folder: Path) -> nn.Module:
    """A folder as timm's `local-dir:` reads it. One that `nas export` wrote is built by our own class: its module need
    not be run."""
    import json

    import timm

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "nas" not in config:
            return timm.create_model(f"local-dir:{folder}", pretrained=True)
        from safetensors.torch import load_file

        from search_spaces.network import MetaFormerNet, network_kwargs

        section = config["nas"]
        kwargs = network_kwargs(Architecture.from_dict(section["architecture"]))
        model = MetaFormerNet(**kwargs, num_classes=section["num_classes"], in_chans=section["in_chans"], deploy=True)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:  # timm, safetensors and torch raise their own
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"teacher folder {folder} cannot be used ({line}); it needs config.json and model.safetensors"
        ) from error
    given = config.get("pretrained_cfg", {})
    described = {"input_size": (section["in_chans"], model.img_size, model.img_size)}
    model.__dict__["pretrained_cfg"] = described | {key: given[key] for key in ("mean", "std") if key in given}
    return model


def _cached_weights(config: dict[str, Any]) -> Path | None:
    """The safetensors file of a pretrained timm model in the hub's cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    if config.get("file") and Path(config["file"]).is_file():
        return Path(config["file"])
    if not config.get("hf_hub_id"):
        return None
    found = try_to_load_from_cache(config["hf_hub_id"], config.get("hf_hub_filename") or "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _per_channel(values: Any, device: torch.device | str) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=device).view(1, -1, 1, 1)
