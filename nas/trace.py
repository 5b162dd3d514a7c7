"""Any `nn.Module` on the meta device -> `Workload` without number formats.

Ops are caught at aten level, so nothing has to be declared by the network's author. A tensor is a storage:
views are free and never appear. Image-like inputs are traced in channels-last memory order, the order in
which accelerators keep feature maps; a copy then appears exactly where data really has to change its order,
and nowhere else.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hw_models.workload import MATRIX_KINDS, Op, Tensor, Workload
from nas.aten import ALIASES, CONSTANT_OPS, FREE_OPS, MATRIX_OPS, Description, describe
from nas.meta_results import in_map_order, meta_result


class TraceError(ValueError):
    """A module that cannot be traced; the message names the op or the reason."""


def trace_module(module: nn.Module, input_shapes: Sequence[Sequence[int]], name: str = "") -> Workload:
    """Run `module` once on the meta device and record what it does.

    input_shapes: one shape per positional argument of `forward`, batch included.
    The module is not changed; it is traced in evaluation mode, on a copy when its parameters are not on meta.
    Raises TraceError for an op that no table of `nas.aten` knows (with its name) and for a module that meta
    cannot run.
    """
    label = name or type(module).__name__
    shapes = tuple(tuple(int(size) for size in shape) for shape in input_shapes)
    if any(size < 1 for shape in shapes for size in shape):
        raise TraceError(f"input shapes must be positive, but got {shapes} for {label}")
    state = _state(module)
    if module.training or any(not value.is_meta for value in state.values()):
        module = copy.deepcopy(module).to("meta").eval()
        state = _state(module)
    inputs = [meta_input(shape) for shape in shapes]
    names = {storage_key(value): key for key, value in state.items()}
    leaves = {name for name, child in module.named_modules() if not any(child.children())}
    recorder = Recorder(label, inputs, names, leaves)
    cure = "try another input size, or export it to ONNX and name that file"
    with tracing(label, shapes, cure), _module_paths(module, recorder), recorder:
        result = module(*inputs)
    return recorder.workload(result, shapes, sum(value.numel() for value in module.parameters()))


@contextmanager
def tracing(label: str, shapes: Sequence[Sequence[int]], cure: str) -> Iterator[None]:
    """Attention is written out, nothing is kept for gradients, and whatever goes wrong is one clear line."""
    try:
        with torch.no_grad(), _PlainAttention():
            yield
    except TraceError:
        raise
    except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise TraceError(
            f"{label} cannot be traced on the meta device at input {list(map(list, shapes))}: {first_line}; {cure}"
        ) from error


class _PlainAttention(TorchFunctionMode):
    """Writes fused attention as the matmul, softmax, matmul a device runs. The scale folds into a
    requantization.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _plain_attention(*args, **(kwargs or {}))


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa:
        raise TraceError("attention with grouped queries (enable_gqa) is not supported; repeat keys and values instead")
    scores = torch.matmul(query, key.transpose(-2, -1))
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)


class Recorder(TorchDispatchMode):
    """Builds the graph while a network runs. `path` and `role` follow the part that is running.

    names: storage key of every constant -> its name; leaves: paths that one op may have for itself.
    """

    def __init__(self, label: str, inputs: list[torch.Tensor], names: dict[int, str], leaves: set[str]) -> None:
        super().__init__()
        self.label = label
        self.path: list[str] = [""]
        self.role: list[str] = [""]
        self._names = names
        self._leaves = leaves
        self._tensors: list[Tensor] = []
        self._ops: list[tuple[str, str, dict[str, Any]]] = []
        self._index_of: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # keeps storages alive, so that a key is never used twice
        self._folded_macs = 0
        self._inputs = tuple(self._new(value, f"input{i or ''}") for i, value in enumerate(inputs))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = kwargs or {}
        name = func.overloadpacket.__name__
        result = meta_result(name, args, arguments)
        if result is None:
            result = in_map_order(name, args, func(*args, **arguments))
        plain = name if name in FREE_OPS or name in CONSTANT_OPS or not name.endswith("_") else name[:-1]
        plain = ALIASES.get(plain, plain)
        if plain in FREE_OPS:
            self._alive.append(args[0])
            return result
        outputs = list(_tensors(result))
        operands = list(_tensors((args, arguments)))
        if not outputs:  # an assertion: nothing is computed
            return result
        if plain in CONSTANT_OPS:
            for value in outputs:
                self._new(value, plain, constant=True)
        elif plain in ("clone", "copy"):
            self._record_copy(operands, outputs[0])
        else:
            self._record(plain, args, operands, outputs)
        return result

    def _record(self, name: str, args: Any, operands: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        constant = [self._tensors[self.lookup(value)].constant for value in operands]
        description = describe(name, args, outputs[0])
        if description is None:
            if all(constant):
                description = Description("elementwise", "folded")
            else:
                raise TraceError(
                    f"{self.label} uses the op aten::{name} at {self.path[-1] or 'its top level'}, which the "
                    "cost model does not know: add it to a table of nas/aten.py, or replace it in the network"
                )
        if all(constant):
            self._folded_macs += prod(description.gemm) if description.gemm else 0
            self._new(outputs[0], self.path[-1] or name, constant=True)
            for value in outputs[1:]:
                self._new(value, name, constant=True)
            return
        if name in MATRIX_OPS:
            operands = self._in_matrix_order(operands, description)
        fields = _op_fields(description, operands, constant)
        self._append(fields, operands, constant, outputs[0])
        for value in outputs[1:]:  # indices and saved statistics, of no use at inference
            self._new(value, name, constant=True)

    def _record_copy(self, operands: list[torch.Tensor], output: torch.Tensor) -> None:
        """A copy that keeps the order of the bytes is removed by any compiler; one that changes it costs."""
        source = operands[-1]
        index = self.lookup(source)
        if self._tensors[index].constant:
            self._new(output, self._tensors[index].name, constant=True)
        elif len(operands) > 1 and output.numel() < _storage_elements(output):  # written into a part of the output
            self._append({"kind": "copy", "function": "write"}, [source], [False], output)
        elif _axis_order(source) != _axis_order(output):
            self._append({"kind": "transpose"}, [source], [False], output)
        elif _distinct_elements(source) < source.numel():
            self._append({"kind": "copy", "function": "repeat"}, [source], [False], output)
        else:
            self._alive.append(output)
            self._index_of[storage_key(output)] = index

    def _in_matrix_order(self, operands: list[torch.Tensor], description: Description) -> list[torch.Tensor]:
        """Operands of a matrix product as an array reads them; what lies otherwise is transposed first.

        The batch axis is the outermost in memory, and rows of the left operand run along the reduction.
        """
        if description.gemm is None or description.kind == "conv":
            return operands
        placed = []
        for position, value in enumerate(operands):
            batched = value.dim() == 3 and value.shape[0] > 1 and value.stride(0) < max(value.stride()[1:])
            left = position == len(operands) - 2 and min(value.shape[-2:]) > 1
            across = left and value.stride(-1) > value.stride(-2) > 0
            if (batched or across) and not self._is_constant(value):
                moved = torch.empty_like(value, memory_format=torch.contiguous_format)
                fields = {"kind": "transpose", "function": "heads" if batched else ""}
                self._append(fields, [value], [False], moved, role="")  # a role is of what is made of it
                value = moved
            placed.append(value)
        return placed

    def _append(
        self,
        fields: dict[str, Any],
        operands: list[torch.Tensor],
        constant: list[bool],
        output: torch.Tensor,
        role: str | None = None,
    ) -> None:
        path, role = self.path[-1], self.role[-1] if role is None else role
        inputs: dict[int, int] = {}
        for value, known in zip(operands, constant, strict=True):
            if not known:
                index = self.lookup(value)
                read = min(_distinct_elements(value), self._tensors[index].elements)
                inputs[index] = min(inputs.get(index, 0) + read, self._tensors[index].elements)
        weights = tuple(self.lookup(value) for value, known in zip(operands, constant, strict=True) if known)
        fields |= {"inputs": tuple(inputs), "reads": tuple(inputs.values()), "weights": weights, "role": role}
        fields["outputs"] = (self._new(output, path, role=role),)
        self._ops.append((path, fields["function"] if fields.get("function") else fields["kind"], fields))

    def _new(self, value: torch.Tensor, name: str, constant: bool = False, role: str = "") -> int:
        """A new tensor of the graph that now owns the storage of `value` (also when an op worked in
        place).
        """
        shape = tuple(value.shape)
        if value.numel() < _storage_elements(value) and not constant:  # a slice was written: the whole stays alive
            shape = (_storage_elements(value),)
        self._tensors.append(Tensor(name, shape, constant=constant, role=role))
        self._alive.append(value)
        self._index_of[storage_key(value)] = len(self._tensors) - 1
        return len(self._tensors) - 1

    def lookup(self, value: torch.Tensor) -> int:
        """Index of the tensor that owns the storage; a storage never seen before is a parameter or buffer."""
        key = storage_key(value)
        if key not in self._index_of:
            base = value if value.numel() == _storage_elements(value) else value.new_empty(_storage_elements(value))
            self._tensors.append(Tensor(self._names.get(key, "constant"), tuple(base.shape), constant=True))
            self._alive.append(value)
            self._index_of[key] = len(self._tensors) - 1
        return self._index_of[key]

    def _is_constant(self, value: torch.Tensor) -> bool:
        return self._tensors[self.lookup(value)].constant

    def workload(self, result: Any, input_shapes: tuple[tuple[int, ...], ...], params: int) -> Workload:
        """The finished graph. Output tensors are those of `result`."""
        returned = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        outputs = tuple(dict.fromkeys(self.lookup(value) for value in returned))
        names = _unique_names([(path, suffix) for path, suffix, _ in self._ops], self._leaves)
        tensors = list(self._tensors)
        ops = []
        for name, (path, _, fields) in zip(names, self._ops, strict=True):
            ops.append(Op(name=name, module=path, **fields))
            index = fields["outputs"][0]
            tensors[index] = Tensor(name, tensors[index].shape, role=tensors[index].role)
        return Workload(
            name=self.label,
            tensors=tuple(tensors),
            ops=tuple(ops),
            inputs=self._inputs,
            outputs=outputs,
            params=params,
            folded_macs=self._folded_macs,
            input_shapes=input_shapes,
        )


def _op_fields(description: Description, operands: list[torch.Tensor], constant: list[bool]) -> dict[str, Any]:
    """Fields of the `Op`; what the operands are decides between linear and matmul, scale and arithmetic."""
    kind, function = description.kind, description.function
    if kind in MATRIX_KINDS and kind != "conv":
        kind = (
            "linear"
            if any(known and value.dim() > 1 for value, known in zip(operands, constant, strict=True))
            else kind
        )
    if kind == "elementwise" and len(operands) == 1 and function in ("add", "sub", "mul", "div"):
        kind = "scale"  # the other operand is a plain number
    elif kind == "elementwise" and function in ("add", "sub", "mul", "div") and any(constant):
        vector = next(value for value, known in zip(operands, constant, strict=True) if known)
        kind = "scale" if sum(size > 1 for size in vector.shape) <= 1 else kind
    if function == "square":
        function = "mul"  # with itself
    return {
        "kind": kind,
        "function": function,
        "gemm": description.gemm,
        "window": description.window,
        "extent": description.extent,
    }


@contextmanager
def _module_paths(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keeps the recorder's path and role at those of the innermost running module."""
    names = {child: name for name, child in module.named_modules()}

    def enter(child: nn.Module, _: Any) -> None:
        known = child in names  # a module that no module holds as its own belongs to the one that runs it
        role = getattr(child, "role", "") if known else recorder.role[-1]
        recorder.path.append(names[child] if known else recorder.path[-1])
        recorder.role.append(role if isinstance(role, str) else "")

    def leave(*_: Any) -> None:
        recorder.path.pop()
        recorder.role.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unique_names(places: list[tuple[str, str]], leaves: set[str]) -> list[str]:
    """A leaf module with one op gives it its own path; other ops add what they are, numbered from the second
    on.
    """
    per_path = Counter(path for path, _ in places)
    seen: Counter[str] = Counter()
    names = []
    for path, suffix in places:
        name = path if path in leaves and path and per_path[path] == 1 else f"{path}.{suffix}".lstrip(".")
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those among the arguments, or the results, of an aten op: ten times as fast as torch's trees, which know more."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def meta_input(shape: tuple[int, ...]) -> torch.Tensor:
    value = torch.empty(shape, device="meta")
    return value.to(memory_format=torch.channels_last) if len(shape) == 4 else value


def storage_key(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _storage_elements(value: torch.Tensor) -> int:
    return value.untyped_storage().nbytes() // value.element_size()


def _distinct_elements(value: torch.Tensor) -> int:
    """Elements of a view that are different places in memory: an expanded axis counts once."""
    return prod(size for size, stride in zip(value.shape, value.stride(), strict=True) if stride != 0)


def _axis_order(value: torch.Tensor) -> tuple[int, ...]:
    """Axes longer than one, outermost in memory first."""
    strides = value.stride()
    axes = [axis for axis, size in enumerate(value.shape) if size > 1 and strides[axis] != 0]
    return tuple(sorted(axes, key=lambda axis: (-strides[axis], axis)))
