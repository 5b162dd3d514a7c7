"""Export of a chosen network: timm package, standalone module, ONNX and ONNX QDQ, cost report, card;
self-checked.

Importing this package loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.export.network import export_network, model_name

__all__ = ["export_network", "model_name"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("nas.export.network"), name)
