"""One ResNet18 on one array, beside ZigZag (zigzag-dse) and SCALE-Sim (scalesim): time taken, and cycles predicted.

    python -m venv peers && peers/bin/pip install zigzag-dse scalesim six 'numpy<2.4'
    python -m benchmarks.peers --peers peers/bin/python [--out studies/results]

zigzag-dse 3.9.1 imports six without asking for it. scalesim 3.0.0 makes numbers of arrays with one element, which numpy
refuses from 2.4 on ("only 0-dimensional arrays can be converted to Python scalars").

The peers are no dependencies of this project: they run in an interpreter of their own, each on a core, and one that is
not installed there is said to be absent. All read the ResNet18 that ZigZag ships, on ZigZag's 32 x 32 array
("TPU-like": weight stationary, 2 MB on chip, 64 bits a cycle to DRAM). Times are CPU seconds of the process, imports
left out, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from hw_models import Target, Workload, estimate, load_target
from nas.bits import put_precision
from nas.onnx_trace import trace_onnx

SIDE, CLOCK_HZ, ONCHIP_BYTES, DRAM_BYTES_A_CYCLE = 32, 1e9, 2_097_152, 8
TIMEOUT_S = 1500
COMMAND = {"command": "python -m benchmarks.peers --peers PYTHON"}

NEEDS = (
    "Beside what they ask for, ZigZag needs the package six (ModuleNotFoundError), and SCALE-Sim numpy below 2.4",
    '(TypeError: "only 0-dimensional arrays can be converted to Python scalars").',
)

FIND = "import zigzag, pathlib; print(pathlib.Path(zigzag.__file__).parent / 'inputs')"

ZIGZAG = """
import contextlib, io, json, logging, sys, time
from zigzag.api import get_hardware_performance_zigzag as run
logging.disable(logging.CRITICAL)
inputs, folder = sys.argv[1:]
start = time.process_time(), time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    energy, cycles, _ = run(inputs + "/workload/resnet18.onnx", inputs + "/hardware/tpu_like.yaml",
                            inputs + "/mapping/tpu_like.yaml", opt="latency", dump_folder=folder,
                            loma_show_progress_bar=False)
print(json.dumps({"cpu_s": time.process_time() - start[0], "wall_s": time.perf_counter() - start[1],
                  "cycles": float(cycles)}))
"""

SCALESIM = """
import contextlib, io, json, sys, time
from scalesim.scale_sim import scalesim
folder = sys.argv[1]
start = time.process_time(), time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    model = scalesim(save_disk_space=True, verbose=False, config=folder + "/scale.cfg",
                     topology=folder + "/topology.csv", layout=folder + "/layout.csv")
    model.run_scale(top_path=folder)
    cycles = sum(layer.get_compute_report_items()[0] for layer in model.runner.single_layer_sim_object_list)
print(json.dumps({"cpu_s": time.process_time() - start[0], "wall_s": time.perf_counter() - start[1],
                  "cycles": float(cycles)}))
"""


def array_target() -> Target:
    """The same array as data of ours; what ZigZag does not say is as npu_40tops."""
    base = load_target("npu_40tops")
    matrix = replace(
        base.matrix, cores=1, rows=SIDE, columns=SIDE, positions=1, clock_hz=CLOCK_HZ, dataflow="weight_stationary",
        rates={"w8a8": 1.0},
    )  # fmt: skip
    memory = replace(
        base.memory, onchip_bytes=ONCHIP_BYTES, resident_weight_bytes=0, dram_efficiency=1.0,
        dram_bytes_per_s=DRAM_BYTES_A_CYCLE * CLOCK_HZ,
    )  # fmt: skip
    overhead = replace(base.overhead, launch_s=0.0, network_s=0.0, link_bytes_per_s=0.0)
    return replace(base, name="array", matrix=matrix, memory=memory, overhead=overhead)


def ours(path: Path) -> dict[str, Any]:
    """Read, trace and cost the file; then once more, everything remembered but the cost."""
    target = array_target()
    start = time.process_time(), time.perf_counter()
    workload = put_precision(trace_onnx(path), "w8a8")
    report = estimate(workload, target)
    cpu_s, wall_s = time.process_time() - start[0], time.perf_counter() - start[1]
    start = time.process_time(), time.perf_counter()
    estimate(workload, target)
    again_s = time.process_time() - start[0]
    matrix_s = sum(row["matrix_s"] for row in report.rows)
    return {
        "cpu_s": cpu_s, "wall_s": wall_s, "again_cpu_s": again_s, "cycles": report.latency_s * CLOCK_HZ,
        "matrix_cycles": matrix_s * CLOCK_HZ, "macs": report.macs, "layers": len(_convolutions(workload)),
    }  # fmt: skip


def _convolutions(workload: Workload) -> list[Any]:
    return [op for op in workload.ops if op.kind in ("conv", "linear")]


def write_scalesim_inputs(workload: Workload, folder: Path) -> None:
    """Its configuration, and one line a layer: convolutions and the classifier, as SCALE-Sim reads them."""
    size = ONCHIP_BYTES // 1024
    (folder / "scale.cfg").write_text(f"""[general]
run_name = resnet18
[architecture_presets]
ArrayHeight: {SIDE}
ArrayWidth: {SIDE}
IfmapSramSzkB: {size // 2}
FilterSramSzkB: {size // 4}
OfmapSramSzkB: {size // 4}
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: ws
Bandwidth: {DRAM_BYTES_A_CYCLE}
ReadRequestBuffer: 64
WriteRequestBuffer: 64
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
SparseRep: ellpack_block
OptimizedMapping: false
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
""")
    rows, layout = [], []
    for position, op in enumerate(_convolutions(workload)):
        _, m, n, k = op.gemm
        kernel, stride = (op.window.kernel[0], op.window.stride[0]) if op.window else (1, 1)
        side = round(m**0.5)
        input_side = (side - 1) * stride + kernel  # padding is part of the input
        name = f"L{position}"
        rows.append(f"{name},{input_side},{input_side},{kernel},{kernel},{k // kernel**2},{n},{stride},1:1,")
        layout.append(f"{name}," + "1," * 18)
    (folder / "topology.csv").write_text("Layer,IH,IW,FH,FW,C,N,S,Sparsity,\n" + "\n".join(rows) + "\n")
    (folder / "layout.csv").write_text("Layer," + "x," * 18 + "\n" + "\n".join(layout) + "\n")


def run_peer(python: str, program: str, *arguments: str) -> dict[str, Any]:
    """What the program prints, or why it could not."""
    try:
        done = subprocess.run(
            [python, "-c", program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return {"absent": f"no interpreter {python}"}
    except subprocess.TimeoutExpired:
        return {"absent": f"not done after {TIMEOUT_S} s"}
    if done.returncode:
        return {"absent": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def markdown(results: dict[str, dict[str, Any]], versions: str) -> str:
    mine = results["nas"]
    array = (
        f"on a {SIDE} x {SIDE} array, weight stationary, {ONCHIP_BYTES >> 20} MB on chip, {DRAM_BYTES_A_CYCLE} bytes"
    )
    lines = [
        "# One ResNet18, beside ZigZag and SCALE-Sim",
        "",
        f"ZigZag's own ResNet18 at 224 x 224, int8, {array}",
        f"a cycle to DRAM ({versions}). CPU seconds without imports. Cycles are each program's own claim: ZigZag",
        "searches loop orders and counts memory stalls; SCALE-Sim counts the cycles of convolutions and classifier,",
        "every tile filled and drained by itself; ours counts everything, residual additions and pooling too.",
        "",
        "| program | CPU seconds | times ours | million cycles | of ours |",
        "|---|---|---|---|---|",
        f"| nas, reading the file and all | {mine['cpu_s']:.2f} | 1 | {mine['cycles'] / 1e6:.2f} | 1 |",
        f"| nas, the cost again | {mine['again_cpu_s']:.4f} | {mine['again_cpu_s'] / mine['cpu_s']:.2g} | "
        f"{mine['cycles'] / 1e6:.2f} | 1 |",
    ]
    for name, result in results.items():
        if name == "nas":
            continue
        if "absent" in result:
            lines.append(f"| {name} | absent: {result['absent']} | - | - | - |")
        else:
            times, cycles = result["cpu_s"] / mine["cpu_s"], result["cycles"] / 1e6
            ratio = result["cycles"] / mine["cycles"]
            lines.append(f"| {name} | {result['cpu_s']:.1f} | {times:.0f} | {cycles:.2f} | {ratio:.2f} |")
    array_cycles, least = mine["matrix_cycles"] / 1e6, mine["macs"] / SIDE**2 / 1e6
    lines += ["", f"Of our cycles {array_cycles:.2f} million are the array's, for {mine['macs'] / 1e9:.2f} G macs."]
    lines += [f"At one mac per multiplier and cycle they would be {least:.2f} million.", "", *NEEDS, ""]
    lines += ["## Provenance", ""]
    lines += [f"- {key}: {value}" for key, value in (provenance() | COMMAND).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="python", help="interpreter in which the peers are installed")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args()
    found = subprocess.run([args.peers, "-c", FIND], capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(
            f"zigzag-dse is not installed for {args.peers}; its ResNet18 is what is compared: "
            "python -m venv peers && peers/bin/pip install zigzag-dse scalesim six 'numpy<2.4', "
            "then --peers peers/bin/python"
        )
    inputs = Path(found.stdout.strip())
    network = inputs / "workload" / "resnet18.onnx"
    ours(network)  # torch loads parts of itself on first use
    results = {"nas": ours(network)}
    with tempfile.TemporaryDirectory() as folder:
        write_scalesim_inputs(trace_onnx(network), Path(folder))
        with ThreadPoolExecutor() as pool:
            peers = {
                "SCALE-Sim": pool.submit(run_peer, args.peers, SCALESIM, folder),
                "ZigZag": pool.submit(run_peer, args.peers, ZIGZAG, str(inputs), folder),
            }
            results |= {name: running.result() for name, running in peers.items()}
    listed = subprocess.run(
        [args.peers, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=False
    )
    packages = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout or "[]")}
    versions = ", ".join(f"{name} {packages.get(name, 'absent')}" for name in ("zigzag-dse", "scalesim", "numpy"))
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(results, versions)
    (args.out / "peers.md").write_text(text, encoding="utf-8")
    (args.out / "peers.json").write_text(
        json.dumps({"_meta": provenance() | COMMAND, **results}, indent=1) + "\n", encoding="utf-8"
    )
    print(text)


if __name__ == "__main__":
    main()
