"""Ops that exporters write out in several nodes, put together again as every compiler does.

LayerNorm by mean and variance, GELU by erf, SiLU by sigmoid, Hardswish by hardsigmoid, and the root of the attention
scale on both operands of a product, which folds into a requantization as in a traced module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nas.onnx_trace.graph import Graph, Node


def put_together(graph: Graph) -> Graph:
    """The graph with each such group as one node, and without nodes that nothing reads any more."""
    patterns = _Patterns(graph)
    nodes = tuple(patterns.together(node) for node in graph.nodes)
    graph = _without_dead(replace(graph, nodes=nodes))
    return _without_dead(_with_affine(graph))


def _without_dead(graph: Graph) -> Graph:
    read = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if read.intersection(node.outputs):
            kept.append(node)
            read.update(node.inputs)
    return replace(graph, nodes=tuple(reversed(kept)))


def _with_affine(graph: Graph) -> Graph:
    """Scale and shift by constants behind a written-out normalization become its own."""
    made: dict[str, Node] = {}
    nodes = []
    for node in graph.nodes:
        source = next((made[name] for name in node.inputs if name in made), None)
        if source is not None:
            given = [name for name in node.inputs if name in graph.constants]
            if node.op == {1: "Mul", 2: "Add"}.get(len(source.inputs)) and len(given) == 1:
                node = replace(source, inputs=(*source.inputs, given[0]), outputs=node.outputs)
        if node.op == "NormalizedLayer":
            made[node.outputs[0]] = node
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


class _Patterns:
    """Each method returns the one node that a node is the last part of, or None."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.nodes for name in node.outputs}
        self.known = set(graph.constants)  # what does not depend on the image
        for node in graph.nodes:
            if node.op == "Shape" or all(name in self.known for name in node.inputs if name):
                self.known.update(node.outputs)

    def together(self, node: Node) -> Node:
        match node.op:
            case "Div":
                return self._layer_norm(node) or node
            case "Mul":
                return self._gelu(node) or self._gate(node) or node
            case "MatMul":
                return self._attention_scale(node) or node
        return node

    def _maker(self, name: str, *ops: str) -> Node | None:
        """The node that makes a value, if it is one of `ops`; casts in between are looked through."""
        node = self.makers.get(name)
        while node is not None and node.op == "Cast":
            node = self.makers.get(node.inputs[0])
        return node if node is not None and node.op in ops else None

    def _number(self, name: str) -> float | None:
        constant = self.graph.constants.get(name)
        if constant is None or constant.value is None or constant.value.size != 1:
            return None
        return float(constant.value.reshape(-1)[0])

    def _operands(self, node: Node | None) -> tuple[str, float] | None:
        """(value, number) of a node that joins a value with a plain number."""
        for value, other in (node.inputs, node.inputs[::-1]) if node is not None else ():
            number = self._number(other)
            if number is not None and self._number(value) is None:
                return value, number
        return None

    def _layer_norm(self, node: Node) -> Node | None:
        """(x - mean) / sqrt(mean((x - mean)^2) + eps)."""
        root = self._maker(node.inputs[1], "Sqrt")
        total = self._operands(root and self._maker(root.inputs[0], "Add"))
        variance = self._maker(total[0], "ReduceMean") if total else None
        square = self._maker(variance.inputs[0], "Pow", "Mul") if variance else None
        parts = [self._maker(part.inputs[0], "Sub") for part in (node, square) if part is not None]
        if len(parts) < 2 or variance is None:
            return None
        values = {part.inputs[0] if part else "" for part in parts}
        means = {id(part): self._maker(part.inputs[1], "ReduceMean") for part in parts if part}
        value = values.pop()
        same = all(
            mean and mean.inputs[0] == value and self._axes(mean) == self._axes(variance) for mean in means.values()
        )
        if values or not value or not same:
            return None
        return Node("NormalizedLayer", node.name, (value,), node.outputs, {"axes": self._axes(variance)})

    def _axes(self, node: Node) -> tuple[int, ...]:
        if "axes" in node.attributes:
            return tuple(node.attributes["axes"])
        constant = self.graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        return tuple(constant.value.reshape(-1).tolist()) if constant and constant.value is not None else ()

    def _gelu(self, node: Node) -> Node | None:
        """x (1 + erf(x / sqrt 2)) / 2, or its approximation by tanh, multiplied in any order."""
        for factors in self._products(node):
            rest = [name for name in factors if self._number(name) != 0.5]
            if len(rest) != 2:
                continue
            for value, other in (rest, rest[::-1]):
                total = self._operands(self._maker(other, "Add"))
                curve = self._maker(total[0], "Erf", "Tanh") if total else None
                scaled = self._operands(self._maker(curve.inputs[0], "Div", "Mul")) if curve else None
                cubic = self._maker(scaled[0], "Add") if scaled and curve and curve.op == "Tanh" else None
                if scaled and ((cubic is not None and value in cubic.inputs) or scaled[0] == value):
                    return Node("Gelu", node.name, (value,), node.outputs)
        return None

    def _products(self, node: Node) -> Iterator[list[str]]:
        """Three factors of two products, one inside the other."""
        for value, other in (node.inputs, node.inputs[::-1]):
            inner = self._maker(other, "Mul")
            if inner is not None:
                yield [value, *inner.inputs]

    def _gate(self, node: Node) -> Node | None:
        """x sigmoid(x), x hardsigmoid(x)."""
        for value, gate in (node.inputs, node.inputs[::-1]):
            maker = self._maker(gate, "Sigmoid", "HardSigmoid")
            if maker is not None and maker.inputs[0] == value:
                return Node("Swish" if maker.op == "Sigmoid" else "HardSwish", node.name, (value,), node.outputs)
        return None

    def _attention_scale(self, node: Node) -> Node | None:
        """(q s) (k s) as q k: exporters give each operand the root of the scale."""
        values = []
        for name in node.inputs:
            maker = self._maker(name, "Mul")
            free = [value for value in maker.inputs if value not in self.known] if maker else []
            if maker is None or len(free) != 1 or not self._is_scalar(*(set(maker.inputs) - set(free))):
                return None
            values.append(free[0])
        return replace(node, inputs=tuple(values))

    def _is_scalar(self, name: str) -> bool:
        """A known number; one computed from sizes is taken for one."""
        return name not in self.graph.constants or self._number(name) is not None
