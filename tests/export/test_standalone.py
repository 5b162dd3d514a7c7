"""The standalone source: complete, self-contained, only what the network needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from small_networks import small_architecture

from nas.export.standalone import standalone_source
from search_spaces.mixers import MIXERS
from search_spaces.network import MetaFormerNet, network_kwargs

MIXER_KERNELS = [(name, mixer.kernels[-1]) for name, mixer in MIXERS.items()]


def source_of(mixers: list[tuple[str, int]]) -> str:
    arguments = network_kwargs(small_architecture(mixers)) | {"deploy": True}
    return standalone_source("some_network", "A network.", arguments, {"num_classes": 10, "mean": (0.5, 0.5)})


@pytest.mark.parametrize(("mixer", "kernel"), MIXER_KERNELS)
def test_only_the_used_mixer_is_there(mixer: str, kernel: int) -> None:
    classes = {node.name for node in ast.parse(source_of([(mixer, kernel)])).body if isinstance(node, ast.ClassDef)}
    network = MetaFormerNet(**network_kwargs(small_architecture([(mixer, kernel)])))
    in_use = {type(module).__name__ for module in network.modules()}  # one mixer may hold another
    assert {cls.__name__ for cls in MIXERS.values()} & classes == {cls.__name__ for cls in MIXERS.values()} & in_use
    assert {"MetaFormerNet", "MetaFormerBlock", "Head"} <= classes


def test_it_imports_torch_timm_and_the_standard_library_only() -> None:
    tree = ast.parse(source_of(MIXER_KERNELS))
    roots = {alias.name.partition(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    roots |= {str(node.module).partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert roots - set(sys.stdlib_module_names) == {"torch", "timm"}


def test_no_name_is_undefined_or_unused(tmp_path: Path) -> None:
    path = tmp_path / "some_network.py"
    path.write_text(source_of(MIXER_KERNELS))
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F,E9", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
