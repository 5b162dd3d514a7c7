"""Whole networks on a CPU core predicted from measurements of single blocks.

    python -m benchmarks.cpu_latency --out studies/results

For each core, blocks and networks are those of its measurement packs: NAME (up to 150 blocks, see
benchmarks/cpu_pack.py, in fp32 and int8) and NAME_networks (timm networks and networks of the space); NAME/SET is
another set of networks. The predictor is fitted to the blocks of one precision at a time, and, as a stricter reading of
"at most 150 measurements", to 75 of them in both precisions. Where a core has two sets of networks, a last fit has also
learned from the set that it does not predict, as `nas calibrate` does from what `nas verify` measured. A prediction
counts as near when it lies within 10 percent of the measured latency, or within the spread of its repeats where that is
wider. What was looked at before which figure is in LIMITS.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.block_study import study, write
from benchmarks.provenance import provenance
from hw_models import load_target
from hw_models.measurements import load_pack

LIMITS = {
    "epyc_zen5_core": "development data: its networks were looked at often, and what ONNX Runtime makes of SiLU and "
    "of means between integers was put into the cost model because of their errors; blocks of the space and single "
    "convolutions alone, so that timm networks come out an eighth too fast in int8",
    "epyc_zen3_core": "development data since its first fit, which was blind (at 33c3e4c: 0.72 and 0.75 within 10 "
    "percent or spread): the kernels of networks that were missed were profiled, and cycles of such kernels, measured "
    "one by one (benchmarks/library_kernels.py), were put into the target; a virtual core of a host with other guests, "
    "all else of ours stopped; nine minutes for blocks, in the order of the design, so that not all were reached; what "
    "the tool refused as measured under load is left out",
    "epyc_zen3_core/second": "blind: networks of other families, fixed before any of it; target, cost model and blocks "
    "as for epyc_zen3_core, fixed before these times were looked at (first fit, at 4bdf633: 0.93 and 0.80 within 10 "
    "percent or spread, mean errors 0.045 and 0.060); faults that were found by reading the cost model were mended "
    "since; every time that was asked for was taken, with more patience than by default",
}
"""Target, or target/set of networks -> what was looked at."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--target", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--name", default="cpu_latency", help="of the files of results")
    args = parser.parse_args()
    scores, rows, runtimes = [], [], {}
    for name in args.target:
        core = name.partition("/")[0]
        target, blocks, networks = load_target(core), load_pack(core), load_pack(_pack_of_networks(name))
        runtimes[name] = f"{networks[0].runtime} {networks[0].runtime_version}, one thread"
        for label, precisions in (("fp32", ["fp32"]), ("int8", ["w8a8"]), ("both", ["fp32", "w8a8"])):
            formats = [(precision, 1) for precision in precisions]
            found, detail = study(target, blocks, networks, formats, label, name)
            scores += found
            rows += detail
        others = [other for other in LIMITS if other.partition("/")[0] == core and other != name]
        learned = [record for other in others for record in load_pack(_pack_of_networks(other))]
        if learned:
            label = "both, and networks of the other set"
            formats = [("fp32", 1), ("w8a8", 1)]
            found, detail = study(target, blocks, networks, formats, label, name, learned)
            scores += found
            rows += detail
    head = {
        "what": "whole networks on one CPU core, predicted from measured blocks alone",
        **provenance(),
        "runtime": "; ".join(f"{name}: {runtime}" for name, runtime in runtimes.items()),
        "limits": "; ".join(f"{name}: {LIMITS[name]}" for name in args.target),
    }
    write(args.out, args.name, head, scores, rows)


def _pack_of_networks(name: str) -> str:
    """Of a target, or of target/set."""
    return f"{name.replace('/', '_')}_networks"


if __name__ == "__main__":
    main()
