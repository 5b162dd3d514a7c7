"""Single ops, open shapes, and files that cannot be costed: one clear line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hw_models import Workload, load_target
from nas.cost import cost_model
from nas.errors import UsageError
from nas.onnx_trace import trace_onnx
from nas.trace import TraceError


def _file(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    shape: tuple[int | str | None, ...] = (1, 4, 8, 8),
    opset: int = 17,
    domain: str = "",
) -> Path:
    """A file whose input is x and whose output is the first output of the last node."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    domains = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=domains), folder / "model.onnx")
    return folder / "model.onnx"


def _kinds(workload: Workload) -> list[str]:
    return [op.kind for op in workload.ops]


FLOAT = np.float32
ROWS = {
    "asymmetric padding is done before": (
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[0, 0, 1, 1])],
        {"w": np.zeros((6, 4, 3, 3), FLOAT)}, (1, 6, 4, 4), ["copy", "conv"],
    ),
    "padding by name": (
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], auto_pad="SAME_UPPER", group=4)],
        {"w": np.zeros((4, 1, 5, 5), FLOAT)}, (1, 4, 4, 4), ["copy", "conv"],
    ),
    "transposed convolution": (
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])],
        {"w": np.zeros((4, 2, 4, 4), FLOAT)}, (1, 2, 16, 16), ["conv"],
    ),
    "softmax before opset 13 flattens": (
        [helper.make_node("Softmax", ["x"], ["y"])], {}, (1, 4, 8, 8), ["transpose", "softmax"],
    ),
    "pooling over one side": (
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        {}, (1, 4, 4, 4), ["pool"],
    ),
    "resize by scales": (
        [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")],
        {"s": np.array([1, 1, 2, 2], FLOAT)}, (1, 4, 16, 16), ["resize"],
    ),
    "reflected slice, picked, joined": (
        [
            helper.make_node("Slice", ["x", "start", "end", "axis", "step"], ["a"]),
            helper.make_node("Gather", ["a", "picks"], ["b"], axis=1),
            helper.make_node("Concat", ["b", "a"], ["y"], axis=1),
        ],
        {
            "start": np.array([-1]), "end": np.array([-9]), "axis": np.array([3]), "step": np.array([-1]),
            "picks": np.array([2, 0, 1]),
        },
        (1, 7, 8, 8), ["copy", "gather", "copy"],
    ),
    "a plain number is no operand": (
        [helper.make_node("Mul", ["x", "two"], ["y"])], {"two": np.array(2, FLOAT)}, (1, 4, 8, 8), ["scale"],
    ),
    "shapes that the graph computes": (
        [
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["batch"], axis=0),
            helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        {"first": np.array([0]), "rest": np.array([-1])}, (1, 256), ["transpose"],
    ),
    "instance norm": (
        [helper.make_node("InstanceNormalization", ["x", "w", "b"], ["y"])],
        {"w": np.ones(4, FLOAT), "b": np.ones(4, FLOAT)}, (1, 4, 8, 8), ["norm"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_ops_are_what_they_compute(row: str, tmp_path: Path) -> None:
    """Second way: onnxruntime's shape of the result."""
    import onnxruntime

    nodes, weights, shape, kinds = ROWS[row]
    path = _file(tmp_path, nodes, weights, opset=11 if "13" in row else 17)
    workload = trace_onnx(path)
    model = onnx.load(path)
    model.ir_version = 10
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 4, 8, 8), FLOAT)})[0].shape == shape
    assert int(np.prod(shape)) == workload.tensors[workload.outputs[0]].elements
    assert _kinds(workload) == kinds


@pytest.mark.parametrize(
    ("node", "function"),
    [
        (helper.make_node("GlobalAveragePool", ["x"], ["y"]), "avg"),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3]), "mean"),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1, -2]), "mean"),
    ],
)
def test_a_runtime_has_kernels_of_its_own_for_pooling(node: onnx.NodeProto, function: str, tmp_path: Path) -> None:
    assert [op.function for op in trace_onnx(_file(tmp_path, [node])).ops] == [function]


def test_what_the_quantizers_do_not_reach_stays_in_floating_point(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["dw"]),
        helper.make_node("Conv", ["d", "dw", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s", "z"], ["d2"]),
        helper.make_node("Softmax", ["d2"], ["y"], axis=1),
    ]
    weights = {
        "s": np.array(0.1, FLOAT), "z": np.array(0, np.uint8), "zw": np.array(0, np.int8),
        "w": np.zeros((6, 4, 1, 1), np.int8), "b": np.zeros(6, FLOAT),
    }  # fmt: skip
    workload = trace_onnx(_file(tmp_path, nodes, weights))
    conv, relu, softmax = workload.ops
    assert [workload.tensors[index].dtype for index in (*conv.inputs, *conv.weights)] == ["int8", "int8", "int32"]
    assert workload.tensors[conv.outputs[0]].dtype == workload.tensors[relu.outputs[0]].dtype == "int8"
    assert workload.tensors[softmax.outputs[0]].dtype == "fp32"
    assert workload.params == 6 * 4 + 6


def test_an_open_batch_and_an_open_size_can_be_chosen(tmp_path: Path) -> None:
    conv = [helper.make_node("Conv", ["x", "w"], ["y"])]
    path = _file(tmp_path, conv, {"w": np.zeros((6, 4, 1, 1), FLOAT)}, ("batch", 4, "height", "width"))
    with pytest.raises(
        TraceError, match=r"axes height, width of the input 'x' have no fixed size; give .*--input-size"
    ):
        trace_onnx(path)
    assert trace_onnx(path, 16).macs == 16 * 16 * 4 * 6
    assert trace_onnx(path, 16, batch=3).macs == 3 * 16 * 16 * 4 * 6
    fixed = _file(tmp_path, conv, {"w": np.zeros((6, 4, 1, 1), FLOAT)})
    assert trace_onnx(fixed, 8).macs == 8 * 8 * 4 * 6
    with pytest.raises(TraceError, match=r"exported for the size 8 of its input 'x', not 16"):
        trace_onnx(fixed, 16)
    with pytest.raises(TraceError, match=r"exported for the batch 1 of its input 'x', not 2"):
        trace_onnx(fixed, batch=2)


def test_unknown_ops_are_all_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="where"),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Det", ["r"], ["y"], name="det"),
    ]
    nodes[-1].input.append("a")
    with pytest.raises(TraceError, match=r"does not know: NonZero \(at where\), Det \(at det\)"):
        trace_onnx(_file(tmp_path, nodes))
    own = [helper.make_node("Magic", ["x"], ["y"], domain="acme")]
    with pytest.raises(TraceError, match=r"the op Magic of the domain 'acme'"):
        trace_onnx(_file(tmp_path, own, domain="acme"))


def test_shapes_that_depend_on_the_image(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["sizes"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "sizes"], ["y"], name="odd"),
    ]
    with pytest.raises(TraceError, match=r"Reshape 'odd': the size 'sizes' is computed from the image"):
        trace_onnx(_file(tmp_path, nodes))


def test_files_that_are_not_onnx(tmp_path: Path) -> None:
    target = load_target("npu_40tops")
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, message in (
        ("text.onnx", r"text\.onnx is not an ONNX file"),
        ("empty.onnx", r"empty\.onnx is not an ONNX file"),
        ("absent.onnx", r"cannot read .*absent\.onnx: No such file or directory; name an ONNX file"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            cost_model(tmp_path / name, target)
        assert "\n" not in str(caught.value)


def test_missing_external_weights(tmp_path: Path) -> None:
    """Weights are not needed, and their absence is noted; sizes are needed."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Reshape", ["c", "sizes"], ["y"])]
    path = _file(tmp_path, nodes, {"w": np.ones((6, 4, 5, 5), FLOAT), "sizes": np.array([1, -1])})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert trace_onnx(path).params == 6 * 4 * 25
    target = load_target("npu_40tops")
    whole = cost_model(path, target)
    (tmp_path / "weights.bin").unlink()
    path.touch()
    without = cost_model(path, target)
    assert without.summary() == whole.summary()
    assert "weights.bin, which holds weights of the file, is missing" in without.warnings[-1]
    onnx.save(model, path, save_as_external_data=True, location="all.bin", size_threshold=0)
    (tmp_path / "all.bin").unlink()
    with pytest.raises(TraceError, match=r"keeps sizes or indices \(sizes\) in all\.bin, which is missing; put that"):
        trace_onnx(path)


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    target = load_target("npu_40tops")
    conv = [helper.make_node("Conv", ["x", "w"], ["y"])]
    first = cost_model(_file(tmp_path, conv, {"w": np.ones((6, 4, 1, 1), FLOAT)}), target)
    second = cost_model(_file(tmp_path, conv, {"w": np.ones((12, 4, 1, 1), FLOAT)}), target)
    assert second.macs == 2 * first.macs
