"""Early stopping of hopeless trainings: asynchronous successive halving (ASHA, arXiv:1810.05934) on a trade-off.

ASHA compares accuracies; on a front that would stop every small network. What is compared here is the margin of a
network over the best of the rung that costs no more in anything: with a margin of 0 or more it would still be on the
front, and goes on in any case.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.accuracy import Accuracy
from nas.files import write_whole


@dataclass(frozen=True, slots=True)
class Rung:
    """A network at one step of its training. costs: least is best."""

    number: int
    step: int
    costs: tuple[float, ...]
    accuracy: Accuracy


@dataclass(frozen=True, slots=True)
class Halving:
    """name: of the company of trainings that are compared with each other. factor: of those beaten by a cheaper one,
    one in `factor` goes on. levels: how often they are compared, last at 1/factor of the steps, before that at
    1/factor^2, ..."""

    name: str
    factor: int = 3
    levels: int = 2

    def rungs(self, steps: int) -> list[int]:
        """The steps after which trainings of `steps` steps are compared."""
        places = {steps // self.factor**level for level in range(1, self.levels + 1)}
        return sorted(place for place in places if 0 < place < steps)

    def goes_on(self, rung: Rung, board: Path) -> bool:
        """Write `rung` on the board, a folder that all trainings of the company see, and compare it with the others."""
        write_whole(board / str(rung.step) / f"{rung.number}.json", json.dumps(_to_dict(rung)))
        others = [_from_dict(json.loads(path.read_text())) for path in sorted((board / str(rung.step)).glob("*.json"))]
        return survives(rung, [other for other in others if other.number != rung.number], self.factor)


def survives(rung: Rung, others: Sequence[Rung], factor: int) -> bool:
    """Whether a network goes on, given those that have come to the same rung before it.

    It does when no cheaper one is better, or its margin is among the best 1/factor of all (ASHA's rule, which lets the
    first ones through).
    """
    everyone = [rung, *others]
    margins = {each.number: _margin(each, everyone) for each in everyone}
    own = margins[rung.number]
    better = sum(margin > own for number, margin in margins.items() if number != rung.number)
    return own >= 0 or better < math.floor(len(everyone) / factor) or len(everyone) < factor


def _margin(rung: Rung, everyone: Sequence[Rung]) -> float:
    """Its top-1 over the best of those that cost no more; infinite for the cheapest."""
    cheaper = [
        other.accuracy.top1
        for other in everyone
        if other.number != rung.number and all(a <= b for a, b in zip(other.costs, rung.costs, strict=True))
    ]
    return rung.accuracy.top1 - max(cheaper) if cheaper else math.inf


def _to_dict(rung: Rung) -> dict[str, object]:
    accuracy = rung.accuracy.to_dict()
    return {"number": rung.number, "step": rung.step, "costs": list(rung.costs), "accuracy": accuracy}


def _from_dict(data: dict) -> Rung:
    return Rung(data["number"], data["step"], tuple(data["costs"]), Accuracy.from_dict(data["accuracy"]))
