"""What a candidate network is: frozen data, canonical, JSON in and out. Imports neither torch nor numpy."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

NORMS = ("batchnorm", "layernorm", "repbn", "affine")
ACTIVATIONS = ("relu", "hardswish", "gelu", "starrelu")
STEMS = {"conv3s2": 2, "conv3s2x2": 4, "conv7s4": 4}
"""Stem name -> total stride."""
CHANNEL_MIXERS = ("mlp", "dwconv_ffn", "none")
GATES = ("none", "se", "grn")
"""What stands on the hidden layer of a channel mixer: nothing, squeeze-excitation, global response normalization."""


@dataclass(frozen=True, slots=True)
class BlockBits:
    """Bit widths of one block: its weights, and the activations it writes."""

    weights: int = 8
    activations: int = 8

    def __post_init__(self) -> None:
        if self.weights not in (4, 8, 16) or self.activations not in (8, 16):
            raise ValueError(
                f"weights take 4, 8 or 16 bits, activations 8 or 16, but got {self.weights} and {self.activations}"
            )

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"

    @classmethod
    def parse(cls, text: str) -> BlockBits:
        """Read the form `w4a8`. Raises ValueError on any other form."""
        match = re.fullmatch(r"w(\d+)a(\d+)", text)
        if match is None:
            raise ValueError(f"a bit policy must look like 'w8a8', but got {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Block:
    """One MetaFormer block: a token mixer and a channel mixer, each with its residual.

    kernel: side of the mixer's spatial kernel in pixels; 0 for mixers that have none.
    expansion: hidden width of the channel mixer over the block's width (for mbconv: of the inverted bottleneck); 0
        where there is neither.
    channel_mixer: "mlp" also for mixers that are the whole block (mbconv).
    """

    mixer: str
    kernel: int
    expansion: float
    bits: BlockBits = BlockBits()
    channel_mixer: str = "mlp"
    gate: str = "none"

    def __post_init__(self) -> None:
        if self.channel_mixer not in CHANNEL_MIXERS:
            raise ValueError(
                f"channel_mixer must be one of {', '.join(CHANNEL_MIXERS)}, but got {self.channel_mixer!r}"
            )
        if self.gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, but got {self.gate!r}")

    @property
    def mixer_token(self) -> str:
        """Mixer family and kernel in one word, as the search space names them: `dwconv5`, `mhsa`."""
        return f"{self.mixer}{self.kernel}" if self.kernel else self.mixer

    @property
    def modifiers(self) -> tuple[str, ...]:
        """Channel mixer and gate, where they are not the usual ones."""
        return tuple(getattr(self, key) for key, usual in USUAL.items() if getattr(self, key) != usual)


USUAL = {"channel_mixer": "mlp", "gate": "none"}
"""Fields of a block that its JSON leaves out when they have these values."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one width and one spatial size.

    role_width: the narrowest width this stage has in its space. Mixers that give channels different roles (inception)
    lay the roles out for this width, so that a channel keeps its role at every width.
    """

    width: int
    role_width: int
    norm: str
    activation: str
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, but got {self.norm!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, but got {self.activation!r}")
        if not 0 < self.role_width <= self.width or not self.blocks:
            raise ValueError(
                "0 < role_width <= width and at least one block must hold, "
                f"but got (role_width={self.role_width}, width={self.width}, blocks={len(self.blocks)})"
            )


@dataclass(frozen=True)
class Architecture:
    """A complete candidate. Equal networks are equal objects with equal keys.

    resolution: side of the square input image in pixels.
    """

    resolution: int
    stem: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, but got {self.stem!r}")
        if self.resolution < 1 or not self.stages:
            raise ValueError(
                f"an architecture needs a positive resolution and stages, but got {self.resolution}, {self.stages}"
            )

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that name this architecture across processes and releases."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def depth(self) -> int:
        return sum(len(stage.blocks) for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; bits as text (`w8a8`). A channel mixer or gate is named where it is not the usual one."""
        out = asdict(self)
        for stage in out["stages"]:
            stage["blocks"] = [
                {
                    **{key: value for key, value in block.items() if USUAL.get(key) != value},
                    "bits": f"w{block['bits']['weights']}a{block['bits']['activations']}",
                }
                for block in stage["blocks"]
            ]
        out["stages"] = list(out["stages"])
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`. Raises ValueError when a field is missing, unknown or out of range."""
        try:
            stages = tuple(
                Stage(
                    **{
                        **stage,
                        "blocks": tuple(
                            Block(
                                **{
                                    **block,
                                    "kernel": int(block["kernel"]),
                                    "expansion": float(block["expansion"]),
                                    "bits": BlockBits.parse(block["bits"]),
                                }
                            )
                            for block in stage["blocks"]
                        ),
                    }
                )
                for stage in data["stages"]
            )
            return cls(resolution=int(data["resolution"]), stem=data["stem"], stages=stages)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an architecture: {error}") from error

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        parts = [f"r{self.resolution}"]
        for stage in self.stages:
            runs: list[list[Any]] = []
            for block in stage.blocks:
                word = "/".join([block.mixer_token, f"e{block.expansion:g}", *block.modifiers, str(block.bits)])
                if runs and runs[-1][0] == word:
                    runs[-1][1] += 1
                else:
                    runs.append([word, 1])
            parts.append(f"{stage.width}:" + "+".join(f"{count}x{word}" for word, count in runs))
        return " ".join(parts) + f" {self.stages[0].norm} {self.stages[0].activation}"
