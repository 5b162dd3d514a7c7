"""Mixers of a user's own: the documented example from search to export, and every clause it could break."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import random_network, small_architecture
from small_study import small_spec

from nas.conformance import CLAUSES, check_plugin
from nas.errors import UsageError
from nas.export.standalone import standalone_source
from nas.problem import pose, space_of, with_full_paths
from nas.rank import workshop_of
from nas.spec import SpaceSpec, StudySpec, override
from nas.trainings import Training
from search_spaces.menu import MENU
from search_spaces.mixers import MIXERS
from search_spaces.network import network_kwargs
from search_spaces.plugin import Plugin, install, uninstall

DOCUMENT = Path(__file__).parents[1] / "docs" / "mixers.md"
EXAMPLE = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    uninstall()


def written(tmp_path: Path, text: str = EXAMPLE, name: str = "mine.py") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_the_documented_example_meets_the_contract(tmp_path: Path) -> None:
    check_plugin(Plugin("mine.py", EXAMPLE))
    space = space_of(SpaceSpec(plugin=written(tmp_path), mixers=("twice", "pool")))
    assert space["stage1.mixer"].values == ("pool", "twice3", "twice5")
    assert set(space_of(SpaceSpec(plugin=written(tmp_path))).mixers) == {*space_of(SpaceSpec()).mixers, "twice"}
    assert space_of(SpaceSpec(plugin=written(tmp_path), mixers=("plugin",))).mixers == ("twice",)


def test_a_worker_of_nas_rank_that_has_not_met_it_trains_networks_of_it(tmp_path: Path) -> None:
    """All that a worker gets is pickled: here a new process gets it without Ray, whose start takes the most time."""
    problem = pose(small_spec(space_plugin=written(tmp_path), space_mixers=["twice"]), tmp_path)
    workshop = workshop_of(problem, tmp_path, val_images=20)
    training = Training(0, problem.space.decode(problem.space.sample(np.random.default_rng(0))))
    (tmp_path / "sent").write_bytes(pickle.dumps((workshop, training)))
    lines = "import pickle, sys\nworkshop, training = pickle.load(open(sys.argv[1], 'rb'))\nworkshop.train(training)"
    subprocess.run([sys.executable, "-c", lines, str(tmp_path / "sent")], check=True)
    outcome = workshop.outcome(training)
    assert outcome is not None
    assert outcome.val is not None
    assert outcome.val.samples == 20
    assert {block.mixer for stage in outcome.architecture.stages for block in stage.blocks} == {"twice"}


@pytest.mark.slow
@pytest.mark.timeout(600)  # 25 seconds of one idle core: Ray twice, and an export
def test_it_is_searched_by_workers_trained_by_others_and_exported(tmp_path: Path) -> None:
    from nas.export_study import export_trials
    from nas.finalists import run_finalists
    from nas.search import run_search

    spec = small_spec(space_plugin=written(tmp_path), space_mixers=["twice"], search_trials=2, search_batch=2)
    study = run_search(spec, tmp_path / "runs", workers=1)
    assert {block.mixer for trial in study.trials for s in trial.architecture.stages for block in s.blocks} == {"twice"}
    uninstall()
    finished = run_finalists(study, top=1, steps=2, workers=1)
    assert [record["stopped"] for record in finished.finalists.values()] == [False]
    uninstall()
    (folder,) = export_trials(study, study.trials[:1], tmp_path / "out")
    source = next(folder.glob("nas_metaformer_*.py")).read_text()
    assert "class TwiceConv" in source
    assert not any(line.startswith(("import search_spaces", "from search_spaces")) for line in source.splitlines())


def test_the_standalone_file_holds_the_mixer_and_says_what_it_needs() -> None:
    install(Plugin("mine.py", EXAMPLE))
    arguments = network_kwargs(small_architecture([("twice", 3)]))
    assert "It needs" not in standalone_source("network", "A network.", arguments, {})
    install(Plugin("mine.py", "import numpy\n" + EXAMPLE.replace("(3, 5)", "tuple(numpy.array([3, 5]).tolist())")))
    source = standalone_source("network", "A network.", arguments, {})
    assert "It needs, besides torch and timm: numpy." in (ast.get_docstring(ast.parse(source)) or "")


def test_identities_follow_the_text_and_not_the_path(tmp_path: Path) -> None:
    one = space_of(SpaceSpec(plugin=written(tmp_path)))
    moved = space_of(SpaceSpec(plugin=written(tmp_path, name="other.py")))
    edited = space_of(SpaceSpec(plugin=written(tmp_path, EXAMPLE + "# edited\n")))
    assert one.to_dict() == moved.to_dict() != edited.to_dict()
    assert "plugin" not in space_of(SpaceSpec()).to_dict()
    plain, with_plugin = StudySpec(), override(StudySpec(), {"space.plugin": "mine.py"})
    assert plain.identity() == with_plugin.identity() != with_plugin.identity("text of the plugin")
    assert Path(str(with_full_paths(with_plugin).space.plugin)).is_absolute()


def test_an_edited_plugin_takes_the_place_of_the_old_one() -> None:
    install(Plugin("mine.py", EXAMPLE))
    before = MIXERS["twice"]
    network = random_network(small_architecture([("twice", 3)]))
    install(Plugin("mine.py", EXAMPLE))
    assert MIXERS["twice"] is before
    install(Plugin("mine.py", EXAMPLE.replace('"twice"', '"thrice"')))
    assert "twice" not in MENU
    assert MENU["thrice"].kernels == (3, 5)
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def with_body(forward: str, init: str = "", facts: str = "norm_inside = True", name: str = "Mine") -> str:
    return f"""
import torch
from torch import nn
from search_spaces.layers import ConvNorm
from search_spaces.mixers import TokenMixer

class {name}(TokenMixer):
    {facts}

    def __init__(self, dim, kernel, expansion, role_width, activation):
        super().__init__()
        self.conv = ConvNorm(dim, dim, 1)
        {init}

    def forward(self, x):
        {forward}

    def output_layer(self):
        return self.conv.norm

MIXERS = {{"mine": {name}}}
"""


BROKEN = {
    "keeps the shape": with_body("return self.conv(x)[:, :, 1:]"),
    "takes every map": with_body(
        "return self.fc(self.conv(x).flatten(2)).reshape(x.shape)", "self.fc = nn.Linear(64, 64)"
    ),
    "a narrow mixer is a part of a wide one": with_body(
        "return self.conv(x) * self.odd.mean()", "self.odd = nn.Parameter(torch.ones(100 - dim))"
    ),
    "expansion is declared": with_body("return self.conv(x) * self.gain", "self.gain = expansion"),
    "channel_matrices": with_body(
        "return self.conv(x)",
        facts='norm_inside = replaces_block = True; channel_matrices = (("conv.conv.weight", "fc1"),)',
    ),
    "channels keep their roles": with_body("a, b = self.conv(x).chunk(2, 1); return torch.cat((a, -b), 1)"),
    "gradient reaches every parameter": with_body("return self.conv(x)", "self.idle = nn.Conv2d(dim, dim, 1)"),
    "folds exactly": with_body("return self.norm(self.conv(x))", "self.norm = nn.BatchNorm2d(dim)"),
    "known to the cost model": with_body("return self.conv(x).sort(dim=2).values"),
    "known to the quantizer": with_body("return torch.sigmoid(self.conv(x))"),
    "exports": with_body("return self.conv(x)", name="Head"),
}


@pytest.mark.parametrize(
    ("matrices", "found"),
    [
        ('("conv.conv.weight", "fc3")', r'\("LAYER.weight", "fc1" or "fc2"\) is wanted'),
        ('("gone.weight", "fc1")', r"there is no weight 'gone.weight'; it has conv.conv.weight"),
        ('"conv.conv.weight", "fc1"', r'\(\("LAYER.weight", "fc1"\), \.\.\.\) is wanted'),
        ('("first.conv.weight", "fc1"), ("first.conv.weight", "fc2")', "each name and each layer stand once"),
        (
            '("conv.conv.weight", "fc2")',
            r"of shape \[32, 32, 1, 1\] cannot be the weight of fc2, of shape \[32, 64, 1, 1\]",
        ),
        ('("last.weight", "fc2")', "last.weight is not followed by a BatchNorm"),
    ],
)
def test_what_is_wrong_with_shared_matrices_is_said(matrices: str, found: str) -> None:
    facts = f"norm_inside = replaces_block = True; channel_matrices = ({matrices},)"
    init = "self.first = ConvNorm(dim, int(dim * expansion), 1); self.last = nn.Conv2d(int(dim * expansion), dim, 1)"
    with pytest.raises(UsageError, match=found):
        check_plugin(Plugin("mine.py", with_body("return self.last(self.first(self.conv(x)))", init, facts)))


def test_what_the_standalone_file_would_lack_is_named() -> None:
    text = with_body("return self.conv(x) * ONE").replace("class Mine", "ONE, TWO = 1.0, 2.0\n\nclass Mine")
    with pytest.raises(UsageError, match=r"\(exports\): NameError: name 'ONE' is not defined"):
        check_plugin(Plugin("mine.py", text))


def test_a_name_of_another_mixer_is_refused_before_a_network_has_both() -> None:
    with pytest.raises(UsageError, match=r"\(exports\): .*DepthwiseConv is defined twice .*; rename one"):
        check_plugin(Plugin("mine.py", EXAMPLE.replace("TwiceConv", "DepthwiseConv")))


def test_a_name_that_the_network_imports_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(exports\): .*LayerNorm2d is defined and imported .*; rename one"):
        check_plugin(Plugin("mine.py", EXAMPLE.replace("TwiceConv", "LayerNorm2d")))


@pytest.mark.parametrize("line", ["import search_spaces.layers", "from search_spaces.layers import Add as Sum"])
def test_an_import_that_a_standalone_file_cannot_hold_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match=r"\(exports\): .*as in `from search_spaces.layers import ConvNorm`"):
        check_plugin(Plugin("mine.py", line + "\n" + EXAMPLE))


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_broken_clause_is_named(clause: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_plugin(Plugin("mine.py", BROKEN[clause]))
    assert str(caught.value).startswith(f"plugin mine.py: mixer 'mine' breaks the contract ({clause}): ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def", "fails when it is loaded: SyntaxError"),
        ("import no_such_module", "fails when it is loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1", "names no mixers"),
        ("MIXERS = {'mine': int}", r"\(class\).*TokenMixer"),
        (EXAMPLE.replace('"twice"', '"dwconv"'), r"\(name\).*taken"),
        (EXAMPLE.replace('"twice"', '"conv2"'), r"\(name\).*no digit at the end"),
        (EXAMPLE.replace("(3, 5)", "(2, 4)"), r"\(kernels\).*odd"),
        (EXAMPLE.replace("(3, 5)", "[3]"), r"\(kernels\).*tuple"),
        (EXAMPLE.replace("norm_inside", "residual_inside"), r"\(norms\).*norm_inside"),
        (EXAMPLE.replace("output_layer", "last_layer"), r"\(output_layer\)"),
        (
            EXAMPLE.replace("(3, 5), True", "(3, 5), True\n    channel_matrices = (('a.weight', 'fc1'),)"),
            "replaces_block",
        ),
    ],
)
def test_a_file_that_cannot_be_a_plugin_is_refused(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=line):
        space_of(SpaceSpec(plugin=written(tmp_path, text)))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UsageError, match=r"plugin nowhere\.py cannot be read"):
        space_of(SpaceSpec(plugin="nowhere.py"))
