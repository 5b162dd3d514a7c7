"""A node with the values it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nas.onnx_trace.graph import Node
from nas.trace import TraceError

Value = Tensor | NDArray[Any]
"""A value of the graph: a meta tensor, or numbers where they are known."""


@dataclass(frozen=True)
class Call:
    """A node with its values. constant: makes a meta tensor of numbers."""

    node: Node
    values: tuple[Value | None, ...]
    opset: int
    constant: Callable[[str, NDArray[Any]], Tensor]

    def has(self, index: int) -> bool:
        return index < len(self.values) and self.values[index] is not None

    def tensor(self, index: int = 0) -> Tensor:
        value = self.values[index]
        assert value is not None
        return value if isinstance(value, Tensor) else self.constant(self.node.inputs[index], value)

    def optional(self, index: int) -> Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def operand(self, index: int) -> Tensor | float:
        """A plain number where the value is one."""
        value = self.values[index]
        if isinstance(value, np.ndarray) and value.size == 1:
            return float(value.reshape(-1)[0])
        return self.tensor(index)

    def ints(self, index: int, attribute: str = "") -> tuple[int, ...] | None:
        """Whole numbers that newer ops have as an input and older ones as an attribute; None when not given."""
        if attribute and attribute in self.node.attributes:
            value = self.node.attributes[attribute]
            return tuple(value) if isinstance(value, list | tuple) else (int(value),)
        if not self.has(index):
            return None
        return tuple(int(number) for number in self.numbers(index))

    def numbers(self, index: int) -> list[float]:
        value = self.values[index]
        if not isinstance(value, np.ndarray):
            raise TraceError(
                f"{self.node.op} {self.node.name!r}: the size {self.node.inputs[index]!r} is computed from the image; "
                "export the network with fixed shapes"
            )
        return value.reshape(-1).tolist()

    def get(self, name: str, default: Any) -> Any:
        return self.node.attributes.get(name, default)


Handler = Callable[[Call], Tensor | tuple[Tensor, ...]]
"""What one ONNX op is in torch."""
