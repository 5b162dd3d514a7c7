"""What can be built: architectures, search spaces, and the networks they describe.

Importing this package loads neither torch nor numpy; each name is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Architecture": "search_spaces.architecture",
    "Block": "search_spaces.architecture",
    "BlockBits": "search_spaces.architecture",
    "Stage": "search_spaces.architecture",
    "Choice": "search_spaces.space",
    "SearchSpace": "search_spaces.space",
    "SPACES": "search_spaces.metaformer",
    "load_space": "search_spaces.metaformer",
    "MetaFormerNet": "search_spaces.network",
    "build_network": "search_spaces.network",
    "fold": "search_spaces.network",
    "Supernet": "search_spaces.supernet",
}

__all__ = [
    "SPACES",
    "Architecture",
    "Block",
    "BlockBits",
    "Choice",
    "MetaFormerNet",
    "SearchSpace",
    "Stage",
    "Supernet",
    "build_network",
    "fold",
    "load_space",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
