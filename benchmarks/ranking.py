"""How well shared weights order networks, and what in the supernet's training helps: one ranking study per variant.

    python -m benchmarks.ranking --data IMAGES --dir FOLDER --out studies/results
    python -m benchmarks.ranking --data IMAGES --dir FOLDER --truth studies/results/ranking.json --name NAME

Every variant is compared with the same networks, each trained alone once; --truth takes them, and what they reach
alone, from the result of an earlier run, so that a variant costs only its supernet. Writes NAME.json, NAME.md and
NAME.png after each variant. Interrupt it whenever you like: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from benchmarks.ranking_truth import read_ranking, rescored
from nas.correlation import bootstrap, kendall
from nas.files import write_whole
from nas.problem import pose
from nas.progress import Narrator
from nas.rank import Ranking, run_rank
from nas.rank_report import rank_picture, rank_table
from nas.search import train_for
from nas.spec import StudySpec, load_spec, override, parse_setting
from nas.workers import one_thread

SINGLE_PATH = {"train.single_path_share": 1.0, "train.single_path_sizes": "random", "train.steps": 6000}
LARGEST_FIRST = {"train.single_path_share": 0.85, "train.single_path_sizes": "largest", "train.steps": 2000}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "single path": ("one network of random sizes a step", SINGLE_PATH),
    "largest first": ("the largest alone in 85 percent of the steps, then the sandwich", LARGEST_FIRST),
    "single path, then sandwich": (
        "one network of random sizes a step; the sandwich in the last tenth of the steps",
        SINGLE_PATH | {"train.single_path_share": 0.9, "train.steps": 5000},
    ),
    "sandwich": ("largest, smallest and two random networks a step", {"train.single_path_share": 0.0}),
    "no distillation": ("largest first, no in-place distillation", LARGEST_FIRST | {"train.distillation": "none"}),
    "alpha": ("largest first, alpha-divergence in place of KL", LARGEST_FIRST | {"train.distillation": "alpha"}),
    "unfair": ("single path, mixers drawn, not dealt", SINGLE_PATH | {"train.fairness": False}),
    "ema": ("single path, the moving average of the weights is kept", SINGLE_PATH | {"train.ema": 0.99}),
    "drop path": ("single path, residual branches left out", SINGLE_PATH | {"train.drop_path": 0.1}),
    "mixup": ("single path, images mixed", SINGLE_PATH | {"train.mixup": 0.2}),
}
"""Name -> what it is, and the settings that make it. `--variants 'ema:9000'` gives one other steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="images32", help="study whose space, images and training are the base")
    parser.add_argument("--data", help="images, as `nas search --data` takes them")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="entry of that study")
    parser.add_argument("--dir", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--name", default="ranking", help="name of the result")
    parser.add_argument("--truth", type=Path, help="result whose networks and accuracies alone are taken")
    parser.add_argument("--count", type=int, default=32, help="networks")
    parser.add_argument("--draw", type=int, default=1, help="seed of their draw")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each network alone")
    parser.add_argument("--val-images", type=int, default=4000, help="validation images that score them")
    parser.add_argument("--search-images", type=int, default=5000, help="search images that score shared weights")
    parser.add_argument(
        "--variants",
        default="single path;largest first;single path, then sandwich",
        help="names, separated by semicolons",
    )
    args = parser.parse_args()
    images = {"data.source": args.data} if args.data else {}
    settings = dict(map(parse_setting, args.set))
    base = override(load_spec(args.config)[1], images | {"evaluate.search_images": args.search_images} | settings)

    rows: list[dict[str, Any]] = []
    first: Ranking | None = None
    known = read_ranking(args.truth) if args.truth else None
    for words in args.variants.split(";"):
        name, _, steps = words.partition(":")
        what, settings = VARIANTS[name]
        spec = override(base, settings | ({"train.steps": int(steps)} if steps else {}))
        ranking = (
            rescored(known, spec, args.dir, Narrator())
            if known
            else run_rank(
                spec,
                args.dir,
                count=args.count,
                seed=args.draw,
                steps=args.steps,
                val_images=args.val_images,
                narrator=Narrator(),
            )
        )
        first = first or ranking
        rows.append(
            {"variant": name, "what": what, **_row(ranking, first), "inherited": _inherited(spec, ranking, args)}
        )
        study = {"config": args.config, "data": first.data, "draw": args.draw}
        described = {key: value for key, value in first.to_dict().items() if key != "folder"}
        result = {**provenance(), "study": study, "variants": rows, "first": described}
        result["by_early_mixer"] = _by_early_mixer(first)
        write_whole(args.out / f"{args.name}.json", json.dumps(result, indent=1) + "\n")
        write_whole(args.out / f"{args.name}.md", _markdown(result, rows, first, args))
        write_whole(args.out / f"{args.name}.png", rank_picture(first))


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
    with one_thread() as streams:
        scorer = problem.evaluator(trained.supernet, trained.identity)
        shared = scorer.evaluate(best.architecture, "val", streams).accuracy
    return {
        "network": str(best.architecture),
        "shared": shared.to_dict(),
        "alone": best.alone.to_dict(),
        "gap_points": 100 * (best.alone.top1 - shared.top1),
    }


def _markdown(result: dict[str, Any], rows: list[dict[str, Any]], first: Ranking, args: argparse.Namespace) -> str:
    lines = [
        f"# {args.name}",
        "",
        *(f"- {key}: {result[key]}" for key in ("commit", "date", "machine", "versions", "command")),
    ]
    study = result["study"]
    lines += [f"- study: {study['config']}, images of {study['data']}, draw {study['draw']}"]
    if args.truth:
        lines += [f"- networks and their accuracies alone: those of {args.truth.name}"]
    lines += ["", f"## {rows[0]['variant']}", ""]
    lines += [rank_table(first), "", f"![scatter]({args.name}.png)", "", "## Variants of the supernet's training", ""]
    lines += [
        "The same networks, trained alone once. Difference: tau minus that of the first, on the same resamples. "
        "Inherited: of the network with the best one-shot figure, quantized top-1 on validation images with shared "
        "weights, then trained alone.",
        "",
        "| variant | steps | passes | one-shot, mean | tau | tau in a band | difference | inherited, alone | what |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        own = row["inherited"]
        pair = f"{own['shared']['top1']:.1%}, {own['alone']['top1']:.1%}"
        shown = [_interval(row[key]) for key in ("tau", "tau_in_band", "difference_to_first")]
        mean = f"{row['one_shot_top1_mean']:.1%}"
        cells = [row["variant"], str(row["steps"]), str(row["network_passes"]), mean, *shown, pair, row["what"]]
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
