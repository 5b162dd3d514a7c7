"""A target's uncertain values from measured networks, kept near those of a target it is like.

Fitted are the speed of the matrix engine in each measured precision, that of the vector unit, the bandwidth of the
memory behind the chip, and the overheads of a launch and of a network: quantities that a data sheet gives as a peak or
not at all. What they are called, how far they may go and how far they are expected to go is `parameters`.

Maximum a posteriori in logarithms: residuals are log(predicted / measured) over the noise, and log(value / prior) over
the spread of the prior, those beyond some two standard deviations counted linearly, so that one wrong measurement does
not decide (Gelman et al., Bayesian Data Analysis, 3rd ed., ch. 4: the normal approximation at the mode gives the
standard errors, which count no residual linearly). The noise is estimated from the residuals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.estimate import combine, network_overhead_s, streamed_share
from hw_models.factors import folds
from hw_models.group_cost import dram_seconds, group_dram_s
from hw_models.npu import matrix_precision
from hw_models.part_cost import PartCost, estimate_part
from hw_models.target import Target
from hw_models.workload import Workload

Array = NDArray[np.float64]

NOISE_BOUNDS = (0.02, 0.5)
"""Relative noise of a measurement together with what the model leaves out: at best, at worst."""

ROUNDS = 4
"""How often fusing and tiling are chosen anew at the values found, and the noise is estimated anew."""


@dataclass(frozen=True)
class Parameter:
    """One value of a target. key: its place in the file; prior: where it starts; spread: standard deviation, in natural
    logarithms, of how far devices depart from it (estimated); low, high: physical bounds.
    """

    key: str
    prior: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """A parameter's value and how well the measurements determine it. log_error: its standard error in natural
    logarithms, so that 0.1 is about ten percent.
    """

    parameter: Parameter
    value: float
    log_error: float

    @property
    def verdict(self) -> str:
        """How far the measurements decide, in a few words."""
        value, parameter = self.value, self.parameter
        if self.log_error > 0.95 * parameter.spread:
            return "not seen by these measurements: its prior"
        if min(abs(np.log(value / bound)) for bound in (parameter.low, parameter.high)) < 1e-3:
            return "at its bound: suspect"
        if self.log_error > 0.5 * parameter.spread:
            return "weak: kept near its prior"
        return "determined" if self.log_error < 0.15 else "roughly determined"


@dataclass(frozen=True)
class TargetFit:
    """The result. before, after, held_out: log(predicted / measured) per measurement: by the target it is like, by the
    fitted one, and by one fitted without the measurement; noise: relative, estimated.
    """

    target: Target
    fitted: tuple[Fitted, ...]
    before: Array
    after: Array
    held_out: Array
    noise: float


def parameters(target: Target, precisions: Iterable[str]) -> tuple[Parameter, ...]:
    """What can be fitted. precisions: those the matrix engine is measured in."""
    chosen = [
        _parameter(target, f"matrix.rates.{precision}", target.matrix.rates[precision], 0.7, 0.1, 4.0)
        for precision in sorted(set(precisions) & target.matrix.rates.keys())
    ]
    return (
        *chosen,
        _parameter(target, "vector.clock_hz", target.vector.clock_hz, 1.0, 1 / 30, 10.0),
        _parameter(target, "memory.dram_bytes_per_s", target.memory.dram_bytes_per_s, 0.5, 0.1, 3.0),
        _parameter(target, "overhead.launch_s", max(target.overhead.launch_s, 1e-7), 1.0, 1e-2, 1e2),
        _parameter(target, "overhead.network_s", max(target.overhead.network_s, 1e-6), 1.5, 1e-2, 1e3),
    )


def _parameter(target: Target, key: str, prior: float, spread: float, least: float, most: float) -> Parameter:
    """least, most: bounds relative to the prior, cut to those of the target's files."""
    section, name = key.split(".")[:2]
    limits = next(entry.metadata for entry in fields(getattr(target, section)) if entry.name == name)
    low = max(least * prior, limits["low"] or 0.0)
    return Parameter(key, prior, spread, low, min(most * prior, limits["high"]))


def with_values(target: Target, values: Mapping[str, float]) -> Target:
    """The target with other values at some keys, such as {"matrix.rates.w8a8": 0.8, "overhead.launch_s": 3e-6}."""
    changed: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name, *item = key.split(".", 2)
        entries = changed.setdefault(section, {})
        if item:
            entries[name] = {**entries.get(name, getattr(getattr(target, section), name)), item[0]: value}
        else:
            entries[name] = value
    return replace(target, **{section: replace(getattr(target, section), **new) for section, new in changed.items()})


def fit_target(workloads: Sequence[Workload], measured_s: Sequence[float], like: Target) -> TargetFit:
    """Fit the values of `parameters` to measured latencies of workloads with number formats.

    Raises ValueError when there is no measurement, or one that is not positive.
    """
    measured = np.asarray(measured_s, dtype=float)
    if not len(measured) or len(workloads) != len(measured) or not (np.isfinite(measured) & (measured > 0)).all():
        raise ValueError("every workload needs a positive measured latency, and there must be at least one")
    rates = like.matrix.rates
    chosen = parameters(
        like, {matrix_precision(workload, op, rates) for workload in workloads for op in workload.ops if op.gemm}
    )
    start = with_values(like, {parameter.key: parameter.prior for parameter in chosen})  # an overhead of 0 has a floor
    theta, noise = np.zeros(len(chosen)), 0.1
    untouched = times = _Times.of(workloads, start, chosen, theta)
    best: tuple[float, Array, _Times, float] | None = None
    for _ in range(ROUNDS):
        theta = _solve(times, measured, chosen, noise)
        target = with_values(like, _values(chosen, theta))
        times = _Times.of(workloads, target, chosen, theta)
        after = np.log(times.predict(theta, chosen) / measured)
        noise = _noise(after, times, theta, chosen, noise)
        score = float(np.abs(after).mean())
        if best is None or score < best[0] - 1e-6:
            best = (score, theta, times, noise)
        else:
            break
    assert best is not None
    _, theta, times, noise = best
    errors = _log_errors(times, theta, chosen, noise)
    target = with_values(like, _values(chosen, theta))
    return TargetFit(
        target=target,
        fitted=tuple(map(Fitted, chosen, _values(chosen, theta).values(), map(float, errors))),
        before=_log_ratios(workloads, measured, like),
        after=_log_ratios(workloads, measured, target),
        held_out=_held_out(untouched, measured, chosen, noise),
        noise=noise,
    )


def _values(chosen: Sequence[Parameter], theta: Array) -> dict[str, float]:
    """theta: log(value / prior)."""
    exact = (float(parameter.prior * np.exp(step)) for parameter, step in zip(chosen, theta, strict=True))
    return {
        parameter.key: min(max(value, parameter.low), parameter.high)
        for parameter, value in zip(chosen, exact, strict=True)
    }


def _log_ratios(workloads: Sequence[Workload], measured: Array, target: Target) -> Array:
    predicted = [combine([estimate_part(workload, target)], target).latency_s for workload in workloads]
    return np.log(np.array(predicted) / measured)


@dataclass(frozen=True)
class _Times:
    """Times of all fused groups of all networks, so that other parameter values need no new estimate: each time is
    divided by a speed or multiplied by an overhead. Fusing and tiling stay as they were chosen.

    start: [networks] first group of each; share: [groups] of weights that are streamed; rate: [groups] index of the
    parameter that is the speed of the matrix engine, or -1.
    """

    start: NDArray[np.intp]
    share: Array
    rate: NDArray[np.intp]
    matrix_s: Array
    vector_s: Array
    onchip_s: Array
    resident_s: Array
    streamed_s: Array
    launch_s: Array
    host_s: Array
    base: Array

    @classmethod
    def of(cls, workloads: Sequence[Workload], target: Target, chosen: Sequence[Parameter], theta: Array) -> _Times:
        """Times at the values `theta` that `target` has."""
        keys = [parameter.key for parameter in chosen]
        parts = [estimate_part(workload, target) for workload in workloads]
        rows = [_rows(workload, part, keys) for workload, part in zip(workloads, parts, strict=True)]
        counts = [len(some) for some in rows]
        host = [
            network_overhead_s(part.input_bytes + part.output_bytes, target) - target.overhead.network_s
            for part in parts
        ]
        table = np.array([row for some in rows for row in some], dtype=float)
        share, rate, matrix_s, vector_s, onchip_s, resident_s, streamed_s, launch_s = table.T
        return cls(
            start=np.cumsum([0, *counts[:-1]]),
            share=share,
            rate=rate.astype(np.intp),
            matrix_s=matrix_s,
            vector_s=vector_s,
            onchip_s=onchip_s,
            resident_s=resident_s,
            streamed_s=streamed_s,
            launch_s=launch_s,
            host_s=np.array(host),
            base=np.array(theta, dtype=float),
        )

    def predict(self, theta: Array, chosen: Sequence[Parameter]) -> Array:
        """[networks] seconds at other values."""
        ratio = dict(zip((parameter.key for parameter in chosen), np.exp(theta - self.base), strict=True))
        speed = np.append(np.exp(theta - self.base), 1.0)[self.rate]
        compute = np.maximum(self.matrix_s / speed, self.vector_s / ratio["vector.clock_hz"])
        compute = np.maximum(compute, self.onchip_s)
        dram = ratio["memory.dram_bytes_per_s"]
        seconds = (1 - self.share) * np.maximum(compute, self.resident_s / dram)
        seconds += self.share * np.maximum(compute, self.streamed_s / dram) + self.launch_s * ratio["overhead.launch_s"]
        network = next(p.prior * np.exp(t) for p, t in zip(chosen, theta, strict=True) if p.key == "overhead.network_s")
        return np.add.reduceat(seconds, self.start) + self.host_s + network

    def some(self, networks: NDArray[np.intp]) -> _Times:
        """The times of some of the networks."""
        ends = np.append(self.start[1:], len(self.share))
        groups = np.concatenate([np.arange(self.start[index], ends[index]) for index in networks])
        counts = [ends[index] - self.start[index] for index in networks]
        return replace(
            self,
            start=np.cumsum([0, *counts[:-1]]),
            host_s=self.host_s[networks],
            **{name: getattr(self, name)[groups] for name in _PER_GROUP},
        )


_PER_GROUP = ("share", "rate", "matrix_s", "vector_s", "onchip_s", "resident_s", "streamed_s", "launch_s")


def _rows(workload: Workload, part: PartCost, keys: Sequence[str]) -> list[tuple[float, ...]]:
    target = part.target
    share = streamed_share(part.weight_bytes, target)
    key_of = {
        op.name: f"matrix.rates.{matrix_precision(workload, op, target.matrix.rates)}" for op in workload.ops if op.gemm
    }
    rows: list[tuple[float, ...]] = []
    for group in part.groups:
        key = next((key_of[name] for name in group.ops if name in key_of), "")
        rate = keys.index(key) if key in keys else -1
        resident_s, streamed_s = (group_dram_s(group, end, target) for end in (0.0, 1.0))
        if target.memory.weights_first or target.runtime.one_core:  # a time of its own, which nothing hides
            alone_s = dram_seconds(group.dram_weight_bytes, target)
            rows.append((share, -1, 0.0, 0.0, 0.0, 0.0, alone_s, 0.0))
            streamed_s = resident_s
        if target.runtime.one_core and not target.memory.weights_first:
            passing_s = dram_seconds(group.dram_activation_bytes, target)
            resident_s = streamed_s = 0.0 if group.matrix_s else passing_s
            if group.matrix_s:  # a product waits for its maps
                rows.append((share, -1, 0.0, 0.0, 0.0, passing_s, passing_s, 0.0))
        rows.append(
            (share, rate, group.matrix_s, group.vector_s, group.onchip_s, resident_s, streamed_s, group.launch_s)
        )
    return rows


def _solve(times: _Times, measured: Array, chosen: Sequence[Parameter], noise: float) -> Array:
    from scipy.optimize import least_squares

    spread = np.array([parameter.spread for parameter in chosen])

    def residuals(theta: Array) -> Array:
        return np.concatenate([np.log(times.predict(theta, chosen) / measured) / noise, theta / spread])

    bounds = (
        np.array([np.log(parameter.low / parameter.prior) for parameter in chosen]),
        np.array([np.log(parameter.high / parameter.prior) for parameter in chosen]),
    )
    start = np.clip(times.base, bounds[0] + 1e-9, bounds[1] - 1e-9)
    return least_squares(residuals, start, bounds=bounds, loss="soft_l1", f_scale=2.0).x


def _slopes(times: _Times, theta: Array, chosen: Sequence[Parameter]) -> Array:
    """[networks, parameters] derivatives of the log predictions."""
    step = 1e-4
    columns = []
    for index in range(len(chosen)):
        ahead, back = theta.copy(), theta.copy()
        ahead[index] += step
        back[index] -= step
        columns.append(np.log(times.predict(ahead, chosen) / times.predict(back, chosen)) / (2 * step))
    return np.stack(columns, axis=1)


def _log_errors(times: _Times, theta: Array, chosen: Sequence[Parameter], noise: float) -> Array:
    slopes = _slopes(times, theta, chosen) / noise
    prior = np.diag([parameter.spread**-2.0 for parameter in chosen])
    return np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes + prior)))


def _noise(log_ratios: Array, times: _Times, theta: Array, chosen: Sequence[Parameter], noise: float) -> float:
    """From the residuals, each counted as at most 0.5, with the degrees of freedom that the fit has used up."""
    slopes = _slopes(times, theta, chosen) / noise
    curvature = slopes.T @ slopes
    prior = np.diag([parameter.spread**-2.0 for parameter in chosen])
    used = float(np.trace(np.linalg.solve(curvature + prior, curvature)))
    free = max(len(log_ratios) - used, 1.0)
    level = float(np.sqrt((np.minimum(np.abs(log_ratios), 0.5) ** 2).sum() / free))
    return float(np.clip(level, *NOISE_BOUNDS))


def _held_out(times: _Times, measured: Array, chosen: Sequence[Parameter], noise: float) -> Array:
    """[networks] log(predicted / measured), each predicted without itself; all NaN when there is only one."""
    errors = np.full(len(measured), np.nan)
    if len(measured) < 2:
        return errors
    for train, test in folds(len(measured)):
        theta = _solve(times.some(train), measured[train], chosen, noise)
        errors[test] = np.log(times.some(test).predict(theta, chosen) / measured[test])
    return errors
