"""Published latencies of networks on accelerators, each device in turn predicted from the others and ten of its own.

    python -m benchmarks.published_latency --data FOLDER --out studies/results [--pack hw_models/packs]

FOLDER holds npu_published.csv, as `benchmarks.agreement` reads it. For every group (device, precision, runtime) with at
least twenty models: ten drawn at random calibrate, the others test, twenty draws. Compared are the cost model alone
and at the one common scale that the ten give it, ridge regression of the log latency on log macs, parameters and
activations, the predictor with nothing but the ten, with factors transferred from the other devices as its prior, and,
where other devices of the same stack have published at least half of the models, with their latencies as references
(the rest predicted by those devices' own fitted factors). --pack also writes the factors of every device, which
predictions for targets without a board start from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.agreement import PRECISIONS, Row, read_groups, spearman, target_of
from benchmarks.provenance import provenance, write_result
from hw_models import Workload, estimate_part, load_target
from hw_models.estimate import COST_MODEL_VERSION
from hw_models.factors import fit_factors, robust_error
from hw_models.families import network_units
from hw_models.predictor import LEAST_SAMPLES, fit_blend, fit_predictor
from hw_models.samples import Samples
from hw_models.transfer import DeviceFactors, measured_factors, stack_of, transfer
from nas.bits import put_precision
from nas.cost import timm_workload
from nas.errors import UsageError
from nas.trace import TraceError

Array = NDArray[np.float64]

LEAST_TEST, DRAWS = 10, 20
INTERVAL_DRAWS = 10
"""Draws with which intervals are fitted too: that takes ten times as long. An interval of ten samples is as wide as the
largest of its errors, so that its coverage varies by 0.08 between draws (Beta(10, 1); Vovk 2012, "Conditional validity
of inductive conformal predictors", section 3), and three draws say little of a device."""

SMALLEST = 3
"""Models that a group needs to lend its factors to other devices."""

METHODS = ("cost model", "scaled", "ridge", "own ten", "transfer", "references")


@dataclass(frozen=True)
class Group:
    """One device, precision and runtime. simple: [models, 3] log macs, parameters, activations."""

    device: str
    precision: str
    runtime: str
    target: str
    models: tuple[tuple[str, int | None], ...]
    samples: Samples
    simple: Array


def read(path: Path) -> list[Group]:
    """The groups that have a target, with their models traced; models that cannot be are left out."""
    found = []
    for (device, precision, runtime), rows in sorted(read_groups(path, SMALLEST).items()):
        name = target_of(device)
        if name is None:
            continue
        found.append(_group(device, precision, runtime, name, rows))
        print(f"{len(found[-1].models):3d} models  {device} {precision}", flush=True)
    return found


@cache
def traced(model: str, size: int) -> Workload:
    """A timm model's workload: most are published for several devices. Raises as `timm_workload`."""
    return timm_workload(model, size, 1, True)


def _group(device: str, precision: str, runtime: str, name: str, rows: Sequence[Row]) -> Group:
    target = load_target(name)
    kept, units, simple = [], [], []
    for row in rows:
        try:
            workload = traced(row.model, row.input_size)
        except (TraceError, UsageError) as error:
            print(f"left out: {row.model} at {row.input_size}: {error}")
            continue
        kept.append(row)
        part = estimate_part(put_precision(workload, PRECISIONS[precision.split()[0]]), target)
        units.append(network_units([part], target))
        simple.append(_simple(workload))
    samples = Samples.of(units, [row.seconds for row in kept])
    models = tuple((row.model, row.input_size) for row in kept)
    return Group(device, precision, runtime, name, models, samples, np.log(np.array(simple)))


def _simple(workload: Workload) -> list[float]:
    """Macs, parameters, activations: elements that matrix ops write."""
    written = sum(workload.tensors[op.outputs[0]].elements for op in workload.ops if op.gemm is not None)
    return [float(workload.macs), float(workload.params), float(written)]


def references(group: Group, groups: Sequence[Group]) -> Array | None:
    """[models, groups] latencies of the same models on other devices of the stack that have at least half of them."""
    columns = []
    for other in groups:
        same_stack = stack_of(other.target)[1] == stack_of(group.target)[1]
        if other.target == group.target or not same_stack or _precision(other) != _precision(group):
            continue
        known = dict(zip(other.models, other.samples.measured_s, strict=True))
        if 2 * sum(model in known for model in group.models) >= len(group.models):
            guessed = _on_other(group, other)
            columns.append([known.get(model, guess) for model, guess in zip(group.models, guessed, strict=True)])
    return np.array(columns).T if columns else None


def _on_other(group: Group, other: Group) -> Array:
    """[models] latencies of a group's models on another device, by factors fitted to what that one published."""
    factors, _ = fit_factors(other.samples.columns_s, other.samples.measured_s)
    target, precision = load_target(other.target), _precision(other)
    workloads = [traced(model, size) for model, size in group.models]
    units = [network_units([estimate_part(put_precision(work, precision), target)], target) for work in workloads]
    return Samples.of(units).columns_s @ factors


def _precision(group: Group) -> str:
    return PRECISIONS[group.precision.split()[0]]


def own_factors(group: Group) -> DeviceFactors:
    """A group's factors, without errors."""
    return measured_factors(
        group.samples, device=group.device, target=group.target, precision=group.precision, runtime=group.runtime
    )


def with_errors(groups: Sequence[Group], fitted: Sequence[DeviceFactors]) -> list[DeviceFactors]:
    """The factors with each group's errors when it is predicted from the other devices of its kind alone."""
    found = []
    for group, own in zip(groups, fitted, strict=True):
        known = transfer(load_target(group.target), fitted)
        errors: tuple[float, ...] = ()
        if known is not None:
            predicted = group.samples.columns_s @ np.exp(known.prior.mean)
            errors = tuple(round(float(error), 3) for error in np.log(group.samples.measured_s / predicted))
        found.append(replace(own, log_errors=errors))
    return found


@dataclass(frozen=True)
class Unseen:
    """A target predicted without any measurement of it. log_errors: measured over predicted; log_spread: half-width of
    the 90 percent interval.
    """

    target: str
    log_errors: Array
    log_spread: float

    @property
    def held(self) -> float:
        return float((np.abs(self.log_errors) <= self.log_spread).mean())


def unseen_targets(groups: Sequence[Group], fitted: Sequence[DeviceFactors]) -> list[Unseen]:
    """Every target with kin, as if its measurements did not exist: not even the errors of others knew of them."""
    found = []
    for name in dict.fromkeys(group.target for group in groups):
        rest = [position for position, group in enumerate(groups) if group.target != name]
        known = transfer(load_target(name), with_errors([groups[p] for p in rest], [fitted[p] for p in rest]))
        if known is not None:
            own = [group.samples for group in groups if group.target == name]
            errors = [np.log(each.measured_s / (each.columns_s @ np.exp(known.prior.mean))) for each in own]
            found.append(Unseen(name, np.concatenate(errors), known.log_spread))
    return found


def unseen_text(unseen: Sequence[Unseen]) -> dict[str, str]:
    """How far off and how often held, in words."""
    errors = np.concatenate([one.log_errors for one in unseen])
    by_target = ", ".join(f"{one.target} {100 * one.held:.0f} ({np.exp(one.log_spread):.1f})" for one in unseen)
    held = 100 * np.mean([one.held for one in unseen])
    return {
        "no measurement of the device, factors transferred": f"{len(errors)} latencies, root mean square log error "
        f"capped at 0.5: {robust_error(errors):.3f}",
        "no measurement of the device, 90 percent intervals": f"hold {held:.0f} percent on average over "
        f"{len(unseen)} targets; percent of each (and factor either way): {by_target}",
    }


def compare(group: Group, devices: Sequence[DeviceFactors], other_s: Array | None, draws: int) -> dict[str, Any]:
    """Mean scores of every method over draws of ten calibration models."""
    samples, scores = group.samples, {method: [] for method in METHODS}  # type: dict[str, Any]
    known = transfer(load_target(group.target), devices)
    covered, factor = [], []
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(samples))
        train, test = order[:LEAST_SAMPLES], order[LEAST_SAMPLES:]
        training, tested = samples.take(train), samples.take(test)
        scale = np.exp(np.median(np.log(training.measured_s / training.prior_s)))
        predicted = {
            "cost model": tested.prior_s,
            "scaled": scale * tested.prior_s,
            "ridge": _ridge(group, train, test),
        }
        predicted["own ten"] = fit_blend(training).predict(tested)
        prior = known.prior if known is not None else None
        predicted["transfer"] = fit_blend(training, prior).predict(tested)
        if seed < INTERVAL_DRAWS:
            low, high = fit_predictor(training, prior).interval(tested)
            covered.append(((low <= tested.measured_s) & (tested.measured_s <= high)).mean())
            factor.append(np.median(np.sqrt(high / low)))
        predicted["references"] = predicted["transfer"]
        if other_s is not None:
            full = replace(samples, references_s=other_s)
            predicted["references"] = fit_blend(full.take(train), prior).predict(full.take(test))
        for method, seconds in predicted.items():
            error = np.log(seconds / tested.measured_s)
            within = (np.abs(seconds / tested.measured_s - 1) <= 0.1).mean()
            scores[method].append((spearman(seconds, tested.measured_s), float(np.abs(error).mean()), within))
    row: dict[str, Any] = {"device": group.device, "precision": group.precision.split()[0], "models": len(samples)}
    row["references"] = 0 if other_s is None else other_s.shape[1]
    for method in METHODS:
        rho, error, within = np.mean(scores[method], axis=0)
        row |= {f"rho {method}": float(rho), f"error {method}": float(error), f"within 10 {method}": float(within)}
    return row | {"coverage": float(np.mean(covered)), "interval factor": float(np.mean(factor))}


def _ridge(group: Group, train: NDArray[np.intp], test: NDArray[np.intp]) -> Array:
    from sklearn.linear_model import RidgeCV

    logs = group.simple - group.simple.mean(axis=0)
    model = RidgeCV(alphas=(0.01, 0.1, 1.0, 10.0)).fit(logs[train], np.log(group.samples.measured_s[train]))
    return np.exp(model.predict(logs[test]))


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """How many groups the predictor wins, by each score; and which it does not."""
    found = {}
    for rival in ("cost model", "scaled", "ridge"):
        for score, sign in (("rho", 1), ("error", -1)):
            for ours in ("own ten", "transfer", "references"):
                lost = [r for r in rows if sign * r[f"{score} {ours}"] <= sign * r[f"{score} {rival}"]]
                names = ", ".join(f"{row['device']} {row['precision']}" for row in lost) or "none"
                text = f"{len(rows) - len(lost)} of {len(rows)} groups, not: {names}"
                found[f"{ours} better than {rival} by {score}"] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of npu_published.csv")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--pack", type=Path, help="folder that published_factors.json is written to")
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    groups = read(args.data / "npu_published.csv")
    fitted = [own_factors(group) for group in groups]
    devices = with_errors(groups, fitted)
    rows = []
    for group in groups:
        if len(group.models) < LEAST_SAMPLES + LEAST_TEST:
            continue
        # A device's own groups are no help to it: `transfer` leaves its target out.
        rows.append(compare(group, devices, references(group, groups), args.draws))
        print(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )
    result = {
        "what": "published latencies, ten networks of a device calibrate, the rest test; mean over draws; error is the "
        "mean absolute log error; scaled: the cost model with its one common scale from the same ten",
        **provenance(),
        "draws": args.draws,
        **verdict(rows),
        **unseen_text(unseen_targets(groups, fitted)),
        "networks": rows,
    }
    write_result(
        args.out / "published_latency", result, columns=[key for key in rows[0] if not key.startswith("within")]
    )
    if args.pack is not None:
        meta = {"made by": "benchmarks.published_latency", **provenance()}
        meta["cost_model_version"] = COST_MODEL_VERSION
        data = {"_meta": meta, "devices": [one.to_dict() for one in devices]}
        args.pack.mkdir(parents=True, exist_ok=True)
        (args.pack / "published_factors.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
