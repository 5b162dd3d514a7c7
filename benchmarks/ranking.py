"""How well shared weights order networks, and what in the supernet's training helps: one ranking study per variant.

    python -m benchmarks.ranking --dir FOLDER --out studies/results

Every variant is compared with the same networks, each trained alone once. Writes ranking.json, ranking.md and
ranking.png after each variant. Interrupt it whenever you like: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from nas.correlation import bootstrap, kendall
from nas.files import write_whole
from nas.problem import pose
from nas.progress import Narrator
from nas.rank import Ranking, run_rank
from nas.rank_report import rank_picture, rank_table
from nas.search import train_for
from nas.spec import StudySpec, override
from nas.workers import one_thread

SETTINGS: dict[str, Any] = {
    "space.choices": {"resolution": [24], "norm": ["batchnorm"], "activation": ["relu"]},
    "data.source": "procedural:classes=12,size=24,train=6000,val=2000,contrast=48,noise=16",
    "train.steps": 150,
    "train.single_path_share": 0.0,
    "evaluate.search_images": 1000,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sandwich": ("largest, smallest and two random networks a step, in-place distillation, fair mixers", {}),
    "no distillation": ("the same without in-place distillation", {"train.distillation": "none"}),
    "single path": (
        "one network of random sizes a step, four times the steps",
        {"train.single_path_share": 1.0, "train.single_path_sizes": "random", "train.steps": 600},
    ),
    "largest first": (
        "85 percent of the steps the largest alone, then the sandwich; as many network passes",
        {"train.single_path_share": 0.85, "train.steps": 414},
    ),
    "unfair": ("mixers drawn, not dealt", {"train.fairness": False}),
    "alpha": ("alpha-divergence in place of KL", {"train.distillation": "alpha"}),
    "sandwich twice": ("the first with twice the steps", {"train.steps": 300}),
    "largest first, long": (
        "the fourth with four times the steps",
        {"train.single_path_share": 0.85, "train.steps": 1656},
    ),
    "single path, long": (
        "the third with four times the steps",
        {"train.single_path_share": 1.0, "train.single_path_sizes": "random", "train.steps": 2400},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--count", type=int, default=32, help="networks")
    parser.add_argument("--steps", type=int, default=150, help="steps of each network alone")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, separated by semicolons")
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    first: Ranking | None = None
    for name in args.variants.split(";"):
        what, settings = VARIANTS[name]
        spec = override(StudySpec(), SETTINGS | settings)
        ranking = run_rank(spec, args.dir, count=args.count, steps=args.steps, narrator=Narrator())
        first = first or ranking
        rows.append(
            {"variant": name, "what": what, **_row(ranking, first), "inherited": _inherited(spec, ranking, args)}
        )
        described = {key: value for key, value in first.to_dict().items() if key != "folder"}
        result = {**provenance(), "settings": SETTINGS, "variants": rows, "first": described}
        result["by_early_mixer"] = _by_early_mixer(first)
        write_whole(args.out / "ranking.json", json.dumps(result, indent=1) + "\n")
        write_whole(args.out / "ranking.md", _markdown(result, rows, first))
        write_whole(args.out / "ranking.png", rank_picture(first))


def _row(ranking: Ranking, first: Ranking) -> dict[str, Any]:
    """Figures of a variant, and the difference of its tau to that of the first on the same resamples."""
    alone = np.array([network.alone.top1 for network in first.networks])
    scores = [np.array([network.one_shot.top1 for network in of.networks]) for of in (ranking, first)]
    difference = bootstrap(
        len(alone), lambda pick: kendall(scores[0][pick], alone[pick]) - kendall(scores[1][pick], alone[pick])
    )
    train, found = ranking.supernet, ranking.agreement
    single = round(train.steps * train.single_path_share)
    return {
        "steps": train.steps,
        "network_passes": single + (train.steps - single) * (2 + train.subnets),
        "tau": found.tau["one-shot"].to_dict(),
        "tau_in_band": found.tau_in_band["one-shot"].to_dict(),
        "spearman": found.spearman["one-shot"].to_dict(),
        "rival": found.rival,
        "lead": found.lead.to_dict(),
        "difference_to_first": difference.to_dict(),
        "one_shot_top1_mean": float(scores[0].mean()),
    }


def _by_early_mixer(ranking: Ranking) -> list[dict[str, Any]]:
    """Mean top-1 of the networks that have a mixer in the first two stages: a mixer that trains faster or slower
    alone than in the supernet is seen here."""
    found: dict[str, list[tuple[float, float]]] = {}
    for network in ranking.networks:
        for mixer in {block.mixer for stage in network.architecture.stages[:2] for block in stage.blocks}:
            found.setdefault(mixer, []).append((network.alone.top1, network.one_shot.top1))
    means = [(mixer, len(pairs), *np.mean(pairs, axis=0)) for mixer, pairs in found.items()]
    return [
        {"mixer": mixer, "networks": count, "alone": float(alone), "one_shot": float(shared)}
        for mixer, count, alone, shared in sorted(means, key=lambda row: -row[2])
    ]


def _inherited(spec: StudySpec, ranking: Ranking, args: argparse.Namespace) -> dict[str, Any]:
    """Of the network that shared weights hold best (on search images): their top-1 and its own, on all val images."""
    problem = pose(spec, args.dir)
    trained = train_for(problem, args.dir, Narrator(quiet=True))
    best = max(ranking.networks, key=lambda network: network.one_shot.top1)
    with one_thread():
        shared = problem.evaluator(trained.supernet, trained.identity).evaluate(best.architecture, "val").accuracy
    return {
        "network": str(best.architecture),
        "shared": shared.to_dict(),
        "alone": best.alone.to_dict(),
        "gap_points": 100 * (best.alone.top1 - shared.top1),
    }


def _markdown(result: dict[str, Any], rows: list[dict[str, Any]], first: Ranking) -> str:
    lines = [
        "# ranking",
        "",
        *(f"- {key}: {result[key]}" for key in ("commit", "date", "machine", "versions", "command")),
    ]
    lines += ["", f"Settings: `{json.dumps(SETTINGS)}`; the rest is default.", "", f"## {rows[0]['variant']}", ""]
    lines += [rank_table(first), "", "![scatter](ranking.png)", "", "## Variants of the supernet's training", ""]
    lines += [
        "The same networks, trained alone once. Difference: tau minus that of the first, on the same resamples. "
        "Inherited: of the network with the best one-shot figure, quantized top-1 on validation images with shared "
        "weights, then trained alone.",
        "",
        "| variant | steps | network passes | tau | within a macs band | difference | inherited, alone | what |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        own = row["inherited"]
        pair = f"{own['shared']['top1']:.1%}, {own['alone']['top1']:.1%}"
        shown = [_interval(row[key]) for key in ("tau", "tau_in_band", "difference_to_first")]
        cells = [row["variant"], str(row["steps"]), str(row["network_passes"]), *shown, pair, row["what"]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## By mixer in the first two stages", "", "| mixer | networks | alone | one-shot, first variant |"]
    lines += ["|" + "---|" * 4]
    lines += [
        f"| {row['mixer']} | {row['networks']} | {row['alone']:.1%} | {row['one_shot']:.1%} |"
        for row in result["by_early_mixer"]
    ]
    return "\n".join(lines) + "\n"


def _interval(estimate: dict[str, float | None]) -> str:
    value, low, high = (float("nan") if estimate[key] is None else estimate[key] for key in ("value", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
