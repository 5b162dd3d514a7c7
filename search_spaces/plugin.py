"""A user's own token mixers, from a Python file with a dict `MIXERS`: name -> class. Needs no torch to be imported."""

from __future__ import annotations

import hashlib
import linecache
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from search_spaces.menu import GROUPS, MENU, MixerFacts

GROUP = "plugin"


class PluginError(ValueError):
    """A file that cannot be a plugin, or a mixer in it that breaks a clause of the contract."""


@dataclass(frozen=True)
class Plugin:
    """A plugin as it was read: networks keep meaning what they meant when the file is edited or moved.

    path: where it was, for messages. text: the file.
    """

    path: str
    text: str

    @cached_property
    def identity(self) -> str:
        """Sixteen hexadecimal digits of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_plugin(path: str) -> Plugin:
    """Raises PluginError when there is no such file, or it is not text."""
    try:
        return Plugin(path, Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PluginError(f"plugin {path} cannot be read ({error}); --plugin takes a Python file") from error


def install(plugin: Plugin) -> list[str]:
    """Run the file and enter its mixers into the registry and the menu, in place of those of another plugin.

    Returns their names; does nothing when they are there already. Raises PluginError for a file that fails, and for a
    mixer whose class cannot meet the contract (`search_spaces.mixers.contract.TokenMixer`), naming the clause.
    """
    from search_spaces.mixers import MIXERS

    name = f"nas_plugin_{plugin.identity}"
    present = [family for family, facts in MENU.items() if facts.group == GROUP]
    if present and all(MIXERS[family].__module__ == name for family in present):
        return present
    table = _run(plugin, name)
    uninstall()
    for family, mixer in table.items():
        facts = _facts(plugin, family, mixer)
        MENU[family], MIXERS[family] = facts, mixer
    return list(table)


def uninstall() -> None:
    """Take the mixers of a plugin out of the registry and the menu. Networks that were built of them stay whole."""
    from search_spaces.mixers import MIXERS

    for family in [family for family, facts in MENU.items() if facts.group == GROUP]:
        del MENU[family], MIXERS[family]


def _run(plugin: Plugin, name: str) -> dict[str, Any]:
    """The MIXERS of the file, run as the module `name`."""
    module = ModuleType(name)
    module.__file__ = plugin.path
    # For inspect.getsource, by which export finds the text; an entry without a time is not compared with the file.
    linecache.cache[plugin.path] = (len(plugin.text), None, plugin.text.splitlines(keepends=True), plugin.path)
    sys.modules[name] = module
    try:
        exec(compile(plugin.text, plugin.path, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        words = (str(error).splitlines() or [""])[0]
        raise PluginError(f"plugin {plugin.path} fails when it is loaded: {type(error).__name__}: {words}") from error
    table = getattr(module, "MIXERS", None)
    if not isinstance(table, dict) or not table:
        raise PluginError(f'plugin {plugin.path} names no mixers; write MIXERS = {{"name": ItsClass}} at its end')
    return table


def _facts(plugin: Plugin, family: Any, mixer: Any) -> MixerFacts:
    """What the menu must know of a plugin's mixer. Raises PluginError."""
    from search_spaces.mixers.contract import TokenMixer

    def broken(clause: str, found: str) -> PluginError:
        return PluginError(f"plugin {plugin.path}: mixer {family!r} breaks the contract ({clause}): {found}")

    if not isinstance(family, str) or not re.fullmatch(r"[a-z][a-z0-9_]*[a-z_]", family):
        raise broken("name", "lower-case letters, digits and _, with no digit at the end: a kernel size follows it")
    if family in MENU or family in GROUPS:
        raise broken("name", "it is taken by a mixer or a group that comes with the program")
    if not (isinstance(mixer, type) and issubclass(mixer, TokenMixer)):
        raise broken("class", f"a subclass of search_spaces.mixers.TokenMixer is wanted, but got {mixer!r}")
    kernels = mixer.kernels
    if not isinstance(kernels, tuple) or not kernels or list(kernels) != sorted(set(kernels)):
        raise broken("kernels", f"a tuple of sizes, small to large, (0,) for none, is wanted, but got {kernels!r}")
    if any(not isinstance(kernel, int) or kernel < 0 or (kernel and kernel % 2 == 0) for kernel in kernels):
        raise broken("kernels", f"sizes must be odd, or 0 for none: smaller ones lie in the middle; got {kernels!r}")
    if (mixer.residual_inside or mixer.replaces_block) and not mixer.norm_inside:
        raise broken("norms", "residual_inside and replaces_block need norm_inside")
    if mixer.norm_inside and mixer.norm_after:
        raise broken("norms", "norm_inside and norm_after exclude each other")
    matrices = mixer.channel_matrices
    if not isinstance(matrices, tuple) or any(not isinstance(row, tuple) or len(row) != 2 for row in matrices):
        raise broken("channel_matrices", f'(("LAYER.weight", "fc1"), ...) is wanted, but got {matrices!r}')
    if any(len(set(column)) < len(matrices) for column in zip(*matrices, strict=True)):
        raise broken("channel_matrices", f"each name and each layer stand once, but got {matrices!r}")
    if matrices and not mixer.replaces_block:
        raise broken("channel_matrices", "it needs replaces_block")
    if not mixer.norm_after and not mixer.residual_inside and not hasattr(mixer, "output_layer"):
        raise broken("output_layer", "a method that returns its last layer with weights is wanted")
    facts = MixerFacts(GROUP, kernels, mixer.late_only, mixer.token_bound, mixer.replaces_block, mixer.gated)
    taken = {word for other, known in MENU.items() for word in known.words(other)}
    if clash := sorted(taken & set(facts.words(family))):
        raise broken("name", f"with its kernel it reads like {clash[0]}, another mixer")
    return facts
