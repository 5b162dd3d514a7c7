"""What every test runs under: one thread per process, no hub, no display, repeatable property tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch or numpy are imported: results must not depend on the number of cores, and two test processes
# with a thread pool each slow each other many times over.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
# A test that reached for a hub would hang where there is no network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest  # noqa: E402  (the environment comes first)
from hypothesis import settings  # noqa: E402

# A time limit per example would measure the load of the machine; derandomize makes a failure repeat.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repository")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", type=Path, help="folder of the published measurements that comparisons need")


@pytest.fixture
def published(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Finds a file of published figures below the folder given by --data; the test is skipped without."""

    def find(name: str) -> Path:
        folder = request.config.getoption("--data")
        if folder is None:
            pytest.skip(f"compares with {name}, which is not part of the project: give its folder by --data FOLDER")
        found = sorted(folder.rglob(name))
        return found[0] if found else pytest.skip(f"no {name} below {folder}")

    return find


def _find_benchmarks() -> None:
    """`import benchmarks` finds the studies of this tree, which are not installed, and them alone: with the root
    on the path, tests would import the packages of the tree in place of the installed ones.
    """
    folder = Path(__file__).parents[1] / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)


_find_benchmarks()
