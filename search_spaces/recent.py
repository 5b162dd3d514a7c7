"""What was used last, up to a number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """Values by key; beyond `kept` of them the least recently used is forgotten."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, made if there is none."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        self._values[key] = value = make()
        if len(self._values) > self.kept:
            self._values.popitem(last=False)
        return value
