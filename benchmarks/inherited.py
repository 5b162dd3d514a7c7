"""Inherited accuracy: the best network that a search finds with shared weights, beside the same network trained alone.

    python -m benchmarks.inherited --data IMAGES --dir FOLDER --variants 'narrow sandwich:1000'
    python -m benchmarks.inherited --dir FOLDER --variants 'narrow and small:1500' --near 12 --seeds 0,1,2
    python -m benchmarks.inherited --dir FOLDER --variants 'whole:2000' --focus 750

--focus: after the search so many further steps, by the sandwich, with the values alone that the best four networks of
the front have, from the weights that there are; then the search again, in this narrower space. The further steps count.

Both see the same number of images: as many optimizer steps of the same batches. Both are quantized and measured on all
validation images, which the search never sees. Writes inherited.json and inherited.md after each variant. Interrupt it
whenever you like: the same command goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance, write_result
from nas.evaluate import Evaluator
from nas.problem import Problem, pose
from nas.progress import Narrator
from nas.rank import workshop_of
from nas.search import run_search, train_for
from nas.spec import StudySpec, TrainSpec, load_spec, override
from nas.study import Study
from nas.trainings import Training
from nas.workers import one_thread
from search_spaces.architecture import Architecture

SINGLE_PATH = {"train.single_path_share": 1.0, "train.single_path_sizes": "random"}
SANDWICH = {"train.single_path_share": 0.0, "train.steps": 2000}
FOCUS = {"train.learning_rate": 1e-3}
"""Half of the usual learning rate: the weights are some way there. A guess, not tuned."""

NARROW = {
    "space.choices.norm": ["batchnorm"],
    "space.choices.activation": ["hardswish"],
    "space.choices.stage1.mixer": ["dwconv7"],
    "space.choices.stage2.mixer": ["mbconv3"],
    "space.choices.stage3.mixer": ["sepconv5"],
    "space.choices.stage4.mixer": ["mbconv3"],
}
"""One mixer a stage: those of the network that shared weights held best in `ranking.md`."""

SMALL = {
    "space.choices.expansion": [2.0, 3.0],
    "space.choices.stage1.width": [16, 24],
    "space.choices.stage2.width": [32, 48],
    "space.choices.stage3.width": [64, 80],
    "space.choices.stage4.width": [96, 128],
}
"""The two narrower widths and smaller expansions of every stage: what is left under a tight bound on latency."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("the whole space, one network of random sizes a step", SINGLE_PATH),
    "narrow": ("one mixer a stage, one network of random sizes a step", SINGLE_PATH | NARROW),
    "narrow sandwich": ("one mixer a stage; largest, smallest and two random networks a step", SANDWICH | NARROW),
    "narrow and small": (
        "one mixer a stage, two widths and two expansions; largest, smallest and two random networks a step",
        SANDWICH | NARROW | SMALL,
    ),
    "whole sandwich": ("the whole space; largest, smallest and two random networks a step", SANDWICH),
}
"""Name -> what it is, and the settings that make it. `--variants 'narrow:9000'` gives one other steps."""

COLUMNS = ("variant", "seed", "steps", "passes", "networks", "inherited", "alone", "gap_points", "network", "what")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="images32", help="study whose space, images and training are the base")
    parser.add_argument("--data", help="images, as `nas search --data` takes them")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--dir", type=Path, required=True, help="where trainings and studies are kept")
    parser.add_argument("--out", type=Path, default=Path("studies/results/inherited"))
    parser.add_argument("--trials", type=int, default=64, help="networks that a search scores")
    parser.add_argument("--near", type=int, help="no search: the best of the largest network and so many beside it")
    parser.add_argument("--focus", type=int, default=0, help="further steps near the best networks, see above")
    parser.add_argument("--seeds", default="0", help="of the trainings, separated by commas: one row each")
    parser.add_argument("--variants", default="whole;narrow", help="names, separated by semicolons")
    args = parser.parse_args()
    if args.focus and args.near:
        parser.error("--focus begins with a search, and --near is none: give one of them")
    base = load_spec(args.config)[1]
    settings: dict[str, Any] = {"search.trials": args.trials, "search.objectives": ["top1", "macs"]}
    settings |= {"data.source": args.data} if args.data else {}
    settings |= {"data.limit": args.limit} if args.limit else {}
    base = override(base, settings)

    rows: list[dict[str, Any]] = []
    for words, seed in product(args.variants.split(";"), map(int, args.seeds.split(","))):
        name, _, steps = words.partition(":")
        what, own = VARIANTS[name]
        spec = override(base, own | {"train.seed": seed} | ({"train.steps": int(steps)} if steps else {}))
        rows.append({"variant": name, "seed": seed, "what": what, **compare(spec, args.dir, args.near, args.focus)})
        result = {
            "what": "top-1 of the best network found: with shared weights, and trained alone with as many images seen",
            **provenance(),
            "study": f"{args.config}, images of {rows[0]['data']}",
            "remark": "quantized, on all validation images; ± one standard error",
            "focus": args.focus,
            "found": f"best of the largest and {args.near - 1} mutations of it" if args.near else "by `nas search`",
            "gaps": gaps(rows),
            "variants": rows,
        }
        columns = [*COLUMNS, *(["before"] if args.focus else [])]
        write_result(args.out, result, columns, "variants")
    print(args.out.with_suffix(".md").read_text())


def gaps(rows: list[dict[str, Any]]) -> str:
    """Mean gap of each variant over its seeds, and its standard error where there are several."""
    said = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        points = [row["gap_points"] for row in rows if row["variant"] == name]
        spread = f" ± {np.std(points, ddof=1) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
        said.append(f"{name}: {np.mean(points):.2f}{spread} points, {len(points)} seeds")
    return "; ".join(said)


def compare(spec: StudySpec, folder: Path, near: int | None, focus: int) -> dict[str, Any]:
    """The best network found with the supernet of `spec`, with its weights and trained alone as long."""
    before: dict[str, Any] = {}
    shorter = spec
    if focus:
        study = run_search(spec, folder, config="inherited", narrator=Narrator())
        best = max(study.front, key=lambda trial: trial.top1 or 0.0)
        before = {"before": f"{best.architecture}, search top-1 {best.top1:.2%}"}
        spec = override(spec, SANDWICH | FOCUS | values_of_best(study) | {"train.steps": focus})
        spec = override(spec, {"train.warm_start": str(study.supernet), "train.seed": spec.train.seed + 1000})
    narrator = Narrator()
    problem = pose(spec, folder)
    trained = train_for(problem, folder, narrator)
    evaluator = problem.evaluator(trained.supernet, trained.identity)
    if near:
        best, top1 = best_near_largest(problem, evaluator, near)
    else:
        study = run_search(spec, folder, config="inherited", narrator=narrator)
        trial = max(study.front, key=lambda trial: trial.top1 or 0.0)
        best, top1 = trial.architecture, trial.top1 or 0.0
    with one_thread():
        inherited = evaluator.evaluate(best, "val").accuracy
    steps = spec.train.steps + (shorter.train.steps if focus else 0)
    workshop = workshop_of(problem, folder.resolve())
    workshop = replace(workshop, spec=replace(shorter.train, steps=steps))
    alone = workshop.train(Training(0, best)).val
    assert alone is not None, "without halving every training ends"
    passes = sum(_passes(train) for train in ([shorter.train, spec.train] if focus else [spec.train]))
    return {
        "data": problem.data.name,
        "steps": steps,
        "passes": passes,
        "images_seen": steps * spec.train.batch_size,
        "training_images": len(problem.data.train),
        "networks": problem.space.size,
        "network": str(best),
        "macs": next(iter(problem.cost(best).values()))["macs"],
        "inherited": f"{inherited.top1:.2%} ± {inherited.stderr:.2%}",
        "alone": f"{alone.top1:.2%} ± {alone.stderr:.2%}",
        "gap_points": 100 * (alone.top1 - inherited.top1),
        "search_top1": top1,
        **before,
    }


def values_of_best(study: Study, count: int = 4) -> dict[str, Any]:
    """Settings that leave a space the values which the best networks of a front have."""
    space = pose(study.spec, study.root).space
    best = sorted(study.front, key=lambda trial: -(trial.top1 or 0.0))[:count]
    genomes = [space.encode(trial.architecture) for trial in best]
    return {
        f"space.choices.{choice.name}": [value for value in choice.values if value in {g[choice.name] for g in genomes}]
        for choice in space.free
    }


def _passes(train: TrainSpec) -> int:
    """Networks trained on a batch, over all steps."""
    single = round(train.steps * train.single_path_share)
    return single + (train.steps - single) * (2 + train.subnets)


def best_near_largest(problem: Problem, evaluator: Evaluator, count: int) -> tuple[Architecture, float]:
    """Of the largest network, in w8a8, and mutations of it: the best on search images, and its top-1."""
    rng = np.random.default_rng(0)
    largest = {c.name: "w8a8" if c.name.endswith(".bits") else c.values[-1] for c in problem.space.choices}
    tried = [largest, *(problem.space.mutate(largest, rng) for _ in range(count - 1))]
    with one_thread():
        found = [evaluator.evaluate(problem.space.decode(genome)) for genome in tried]
    best = max(found, key=lambda one: one.accuracy.top1)
    return best.architecture, best.accuracy.top1


if __name__ == "__main__":
    main()
