"""Networks of an earlier ranking, read back from the result that ships."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.ranking_truth import read_ranking, rescored
from nas.progress import Narrator
from nas.spec import load_spec, override

RESULT = Path(__file__).resolve().parents[2] / "studies" / "results" / "ranking.json"


def test_networks_and_their_agreement_are_those_that_were_written():
    known, written = read_ranking(RESULT), json.loads(RESULT.read_text())["first"]
    assert [network.to_dict() for network in known.networks] == written["networks"]
    assert known.agreement.to_dict() == written["agreement"]  # computed anew


def test_other_images_are_refused(tmp_path):
    spec = override(load_spec("quickstart")[1], {"data.limit": 60})
    with pytest.raises(ValueError, match="trained on cifar10, but the images are"):
        rescored(read_ranking(RESULT), spec, tmp_path, Narrator(quiet=True))


def test_accuracies_alone_stay_when_shared_weights_are_scored_anew(tmp_path):
    spec = override(
        load_spec("quickstart")[1],
        {"data.limit": 120, "train.steps": 2, "train.warmup_steps": 1, "train.checkpoint_every": 10}
        | {"evaluate.bn_images": 32, "evaluate.calibration_images": 32, "evaluate.search_images": 40},
    )
    known = read_ranking(RESULT)
    known = replace(known, networks=known.networks[:6], data="procedural")
    again = rescored(known, spec, tmp_path, Narrator(quiet=True))
    assert [network.alone for network in again.networks] == [network.alone for network in known.networks]
    assert all(network.one_shot.samples <= 40 for network in again.networks)
    assert again.supernet.steps == 2
    assert again.agreement != known.agreement
