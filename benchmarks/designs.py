"""Which blocks to measure: designs of experiments compared on cores whose blocks are all measured.

    python -m benchmarks.designs --out studies/results

From seven tenths of the blocks of a core's pack, drawn ten times, each design chooses 15, 30 or 50 by the cost model
alone; the predictor is fitted to their measurements and predicts the core's networks. Designs: "V-optimal" is that of
`nas measure`, `nas calibrate --suggest` and the packs (`nas.measure.design`), with 60 random networks of the space as
goals; "D-optimal" takes the block whose own latency is least sure by the factors' prior spreads and a kernel's mean
features (Fedorov, "Theory of Optimal Experiments", 1972, section 2.5); "farthest points" is that of Gonzalez (1985,
Theoretical Computer Science 38) over shares of the predicted time and its logarithm. Errors are means of
|log(predicted / measured)| over networks and draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.block_study import samples_of
from benchmarks.provenance import provenance, write_result
from hw_models import Target, load_target
from hw_models.factors import COLUMN_SPREAD, SCALE_SPREAD
from hw_models.families import COLUMNS, FEATURES, Units
from hw_models.measurements import Measurement, load_pack
from hw_models.predictor import fit_blend
from hw_models.samples import Samples
from nas.calibrate import record_units
from nas.measure.design import CPU_CLOCK_S, Points, goal_vectors, most_telling
from search_spaces import load_space

Array = NDArray[np.float64]

CORES = {
    "epyc_zen3_core": ("epyc_zen3_core_networks", "epyc_zen3_core_second_networks"),
    "epyc_zen5_core": ("epyc_zen5_core_networks",),
}
"""Target, whose pack of that name holds its blocks -> packs of networks to predict."""

PRECISIONS = ("fp32", "w8a8")
COUNTS = (15, 30, 50)
KEPT = 0.7
"""Share of the blocks from which is chosen, in each draw."""

FEATURE_SPREAD, NOISE = 0.15, 0.05
"""D-optimal: how far a feature bends the log time of a kernel, and how far a measurement scatters."""

TIME_WEIGHT = 0.25
"""Farthest points: doubling a block's time moves it as far as moving a quarter of its time to another family."""


def farthest_points(units: Sequence[Units]) -> list[int]:
    """All of them, the one nearest to the mean first, then each time the farthest from all before."""
    rows = []
    for own in units:
        seconds = own.by_column()
        rows.append([*(seconds / seconds.sum()), TIME_WEIGHT * np.log2(seconds.sum())])
    points = np.array(rows)
    chosen = [int(np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < len(points):
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen] = -1.0
        chosen.append(int(np.argmax(distance)))
    return chosen


def least_sure(units: Sequence[Units], count: int) -> list[int]:
    """Each time the one of which least is known after those before."""
    shares = [own.seconds / own.seconds.sum() for own in units]
    rows = np.array(
        [
            np.concatenate([np.bincount(own.column, share, len(COLUMNS)), share @ own.features])
            for own, share in zip(units, shares, strict=True)
        ]
    )
    covariance = np.diag(np.array([COLUMN_SPREAD] * len(COLUMNS) + [FEATURE_SPREAD] * len(FEATURES)) ** 2)
    covariance[: len(COLUMNS), : len(COLUMNS)] += SCALE_SPREAD**2
    chosen: list[int] = []
    while len(chosen) < count:
        variance = np.einsum("ij,jk,ik->i", rows, covariance, rows)
        variance[chosen] = -1.0
        chosen.append(int(np.argmax(variance)))
        seen = covariance @ rows[chosen[-1]]
        covariance -= np.outer(seen, seen) / (rows[chosen[-1]] @ seen + NOISE**2)
    return chosen


def orders(units: Sequence[Units], goals: Array, rng: np.random.Generator) -> dict[str, list[int]]:
    """Design -> the order in which it takes the units."""
    most = max(COUNTS)
    return {
        "V-optimal": [index for index, _ in most_telling([Points.of(units, CPU_CLOCK_S)], [goals], most)],
        "D-optimal": least_sure(units, most),
        "farthest points": farthest_points(units),
        "random": rng.permutation(len(units)).tolist(),
    }


def study(target: Target, precision: str, networks: Sequence[Measurement], draws: int) -> list[dict[str, Any]]:
    blocks = [one for one in load_pack(target.name) if one.precision == precision and one.is_sharp]
    units = [record_units(one, target) for one in blocks]
    samples = Samples.of(units, [one.latency_s for one in blocks])
    drawn = np.array([one.subject.startswith("arch:") for one in networks])
    tested = samples_of(networks, target)
    spaces = [load_space("metaformer", preset=preset) for preset in ("mobile", "small")]
    goals = np.concatenate([goal_vectors(space, target, precision, 7, 1000, 3)[:30] for space in spaces])
    errors: dict[tuple[str, int], list[Array]] = {}
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        pool = np.sort(rng.permutation(len(blocks))[: int(KEPT * len(blocks))])
        for design, order in orders([units[index] for index in pool], goals, rng).items():
            for count in COUNTS:
                fit = fit_blend(samples.take(pool[np.sort(order[:count])]))
                error = np.abs(np.log(fit.predict(tested) / tested.measured_s))
                errors.setdefault((design, count), []).append(error)
    rows = []
    for (design, count), found in errors.items():
        of_space, of_timm = (np.array(found)[:, own].mean(axis=1) for own in (drawn, ~drawn))
        head = {"target": target.name, "precision": precision, "design": design, "blocks": count, "of": len(pool)}
        rows.append(head | _scores(of_space, of_timm))
        print(rows[-1], flush=True)
    return rows


def _scores(of_space: Array, of_timm: Array) -> dict[str, float]:
    """Of mean errors of each draw: their mean and its standard error."""
    found = {}
    for name, errors in (("of the space", of_space), ("timm", of_timm)):
        found[f"error, {name}"] = float(errors.mean())
        found[f"standard error, {name}"] = float(errors.std(ddof=1) / np.sqrt(len(errors)))
    return found


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every design and count over all cores and precisions."""
    found = []
    for design, count in dict.fromkeys((row["design"], row["blocks"]) for row in rows):
        own = [row for row in rows if (row["design"], row["blocks"]) == (design, count)]
        scores = {}
        for name in ("of the space", "timm"):
            scores[f"error, {name}"] = float(np.mean([row[f"error, {name}"] for row in own]))
            squares = [row[f"standard error, {name}"] ** 2 for row in own]
            scores[f"standard error, {name}"] = float(np.sqrt(np.sum(squares)) / len(own))
        found.append({"target": "all", "precision": "all", "design": design, "blocks": count, "of": None} | scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--draws", type=int, default=10, help="of the blocks from which is chosen")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, packs in CORES.items():
        for precision in PRECISIONS:
            networks = [one for pack in packs for one in load_pack(pack) if one.precision == precision]
            rows += study(load_target(name), precision, networks, args.draws)
    head = {
        "what": "designs of experiments: networks predicted from the blocks that each chose",
        **provenance(),
        "limits": "chosen among blocks which a V-optimal design (Zen 3) or farthest points (Zen 5) had already chosen "
        "from hundreds, so that random ones are spread too",
    }
    rows += means(rows)
    write_result(args.out / "designs", head | {"designs": rows}, columns=list(rows[0]), rows="designs")


if __name__ == "__main__":
    main()
