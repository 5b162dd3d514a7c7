"""The dependency rules, executable: who may import what, and what an import must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import nas
import search_spaces

ROOT = Path(__file__).resolve().parent.parent
HEAVY = frozenset({"torch", "torchvision", "timm", "optuna", "ray", "onnx", "onnxruntime", "matplotlib", "PIL"})


@dataclass(frozen=True)
class Rule:
    """Files under `where` (a path prefix) outside `allowed` must not import the packages in `forbidden`."""

    where: str
    forbidden: frozenset[str]
    allowed: frozenset[str] = frozenset()


EVERYWHERE = ""
RULES = [
    Rule("hw_models/", frozenset({"nas", "search_spaces", "cli", "torch", "timm"})),
    Rule("search_spaces/", frozenset({"nas", "hw_models", "cli"})),
    Rule("nas/", frozenset({"cli"})),
    Rule(
        EVERYWHERE,
        frozenset({"optuna"}),
        frozenset({"nas/trial.py", "nas/samplers.py", "nas/search.py", "nas/store.py", "nas/dashboard.py"}),
    ),
    Rule(EVERYWHERE, frozenset({"optuna_dashboard"}), frozenset({"nas/dashboard.py"})),
    Rule(EVERYWHERE, frozenset({"ray"}), frozenset({"nas/workers.py", "nas/fleet.py"})),
    Rule("search_spaces/architecture.py", frozenset({"torch", "timm", "numpy"})),
    Rule("search_spaces/space.py", frozenset({"torch", "timm"})),
]


def imported_modules(source: str, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a source, wherever it stands; relative names are resolved."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join([*above, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "find_spec"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def breaches(source: str, path: str) -> list[str]:
    """What a source at `path` (relative to the root) imports against the rules."""
    found = []
    for line, module in imported_modules(source, path):
        package = module.split(".")[0]
        for rule in RULES:
            if path.startswith(rule.where) and path not in rule.allowed and package in rule.forbidden:
                found.append(f"{path}:{line} imports {module}")
        commands = path == "cli.py" or path.startswith("nas/commands/")
        if commands and package == "nas" and module != "nas" and not module.startswith("nas.commands"):
            found.append(f"{path}:{line} imports {module}, but the command line may use the face `nas` only")
    return found


def loaded_by(statement: str, folder: Path = ROOT) -> set[str]:
    """Top-level modules that a new interpreter has loaded after a statement."""
    report = "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    code = f"import sys\n{statement}\n{report}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split("\n")[-2].split())


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _sources() -> list[str]:
    packages = [path for name in ("hw_models", "search_spaces", "nas") for path in (ROOT / name).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*packages, ROOT / "cli.py"])


@pytest.mark.parametrize("path", _sources())
def test_a_file_imports_only_what_it_may(path):
    assert breaches((ROOT / path).read_text(), path) == []


@pytest.mark.parametrize("module", ["hw_models", "search_spaces.architecture", "search_spaces.space", "nas", "cli"])
def test_an_import_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") & HEAVY == set()


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["cost", "--help"]])
def test_help_loads_nothing_heavy(words):
    call = f"import cli\ntry:\n    sys.argv[1:] = {words!r}; cli.main()\nexcept SystemExit:\n    pass"
    assert loaded_by(call) & HEAVY == set()


def test_importing_the_data_package_loads_no_timm():
    assert loaded_by("import nas.data.load") & {"timm", "torchvision", "datasets", "optuna", "ray"} == set()


@pytest.mark.parametrize(
    "module",
    ["nas.train", "nas.measure.cuda", "benchmarks.gpu_pack", "benchmarks.block_fusion", "benchmarks.gpu_precisions"],
)
def test_what_trains_and_measures_on_a_gpu_needs_no_database(module):
    """Machines that lend a GPU have torch and timm, and seldom more."""
    assert loaded_by(f"import {module}", ROOT) & {"optuna", "sqlalchemy", "fvcore", "ray"} == set()


@pytest.mark.parametrize("face", [nas, search_spaces], ids=["nas", "search_spaces"])
def test_a_face_lists_each_name_once_more_and_finds_it(face):
    """The names stand twice, for programs and for readers: as a table of homes, and as `__all__`."""
    assert sorted(face.__all__) == sorted(face._HOME)
    for name, home in face._HOME.items():
        assert getattr(face, name) is getattr(import_module(home), name)


def test_tests_are_no_packages():
    """A tests/nas/__init__.py would hide the package nas: tests/ is on the path for `import strategies`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


# The checks above can fail:


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        (
            "hw_models/npu.py",
            "from search_spaces.space import Choice",
            "hw_models/npu.py:1 imports search_spaces.space",
        ),
        ("hw_models/npu.py", "def f():\n    import torch.nn", "hw_models/npu.py:2 imports torch.nn"),
        ("search_spaces/deep/file.py", "import nas.bits", "search_spaces/deep/file.py:1 imports nas.bits"),
        ("nas/evaluate.py", "from optuna import Study", "nas/evaluate.py:1 imports optuna"),
        ("nas/export/onnx.py", "import ray.tune as tune", "nas/export/onnx.py:1 imports ray.tune"),
        ("nas/search.py", "importlib.import_module('ray')", "nas/search.py:1 imports ray"),
        ("nas/report.py", "import optuna_dashboard", "nas/report.py:1 imports optuna_dashboard"),
        (
            "cli.py",
            "from nas.search import run_search",
            "cli.py:1 imports nas.search, but the command line may",
        ),
        ("nas/commands/cost.py", "import nas.cost", "nas/commands/cost.py:1 imports nas.cost, but the command"),
        ("cli.py", "import optuna", "cli.py:1 imports optuna"),
    ],
)
def test_a_breach_is_found(path, source, breach):
    (found,) = breaches(source, path)
    assert found.startswith(breach)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nas/trial.py", "import optuna\nfrom optuna.trial import TrialState"),
        ("nas/workers.py", "import ray"),
        (
            "nas/export/timm_package.py",
            "from . import card\nfrom ..bits import assign\nfrom .card import write",
        ),
        ("nas/evaluate.py", "import rayon, optunahub  # other packages whose names only begin alike"),
        ("cli.py", "import nas\nimport click\nfrom nas.commands.cost import cost"),
    ],
)
def test_what_is_allowed_is_not_reported(path, source):
    assert breaches(source, path) == []


def test_relative_imports_are_resolved():
    assert list(imported_modules("from ..bits import a\nfrom . import b", "nas/export/card.py")) == [
        (1, "nas.bits"),
        (2, "nas.export"),
    ]


def test_a_heavy_import_is_seen(tmp_path):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "innocent.py").write_text("import helper")
    (tmp_path / "helper.py").write_text("import torch")
    assert "torch" in loaded_by("import innocent", tmp_path)
