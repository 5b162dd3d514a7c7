"""One readable Python file of a network, composed from the sources in search_spaces.

The definitions that the network needs, found by following names, are copied as they are written there. The
file needs torch and timm only, and registers the network with timm when it is imported.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import search_spaces.mixers
import search_spaces.network
from search_spaces.mixers import MIXERS

_INTERNAL = ("search_spaces", "nas", "hw_models")
_ENTRY_IMPORTS = {
    "Any": ("typing", "Any"),
    "Path": ("pathlib", "Path"),
    "build_model_with_cfg": ("timm.models", "build_model_with_cfg"),
    "generate_default_cfgs": ("timm.models", "generate_default_cfgs"),
    "register_model": ("timm.models", "register_model"),
}


@dataclass(frozen=True)
class _Definition:
    """A top-level definition: its source text and the names it reads."""

    text: str
    reads: frozenset[str]


def standalone_source(
    name: str, description: str, arguments: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]
) -> str:
    """Source of a module that registers the timm model `name`, a `MetaFormerNet` of these keyword arguments.

    description: the module's docstring. pretrained_cfg: timm's data configuration (mean, std, input_size,
    ...).
    """
    used = {block["mixer"] for stage in arguments["stages"] for block in stage["blocks"]}
    mixers = {family: mixer for family, mixer in MIXERS.items() if family in used}
    modules: dict[ModuleType, None] = {}
    for mixer in mixers.values():
        _collect(sys.modules[mixer.__module__], modules)
    _collect(search_spaces.network, modules)
    definitions: dict[str, _Definition] = {}
    imports: dict[str, tuple[str, str]] = {}
    for module in modules:
        if module is search_spaces.network:
            definitions.pop("MIXERS", None)  # a plugin's own
            definitions["MIXERS"] = _mixer_table({family: mixer.__name__ for family, mixer in mixers.items()})
        _read(module, definitions, imports)
    if shadowed := sorted({*definitions} & {*imports, *_ENTRY_IMPORTS}):
        raise ValueError(f"{shadowed[0]} is defined and imported among the sources of the network; rename one")
    needed = _closure("MetaFormerNet", definitions)
    body = [definition.text for key, definition in definitions.items() if key in needed]
    reads = {read for key in needed for read in definitions[key].reads}
    imports = {key: value for key, value in imports.items() if key in reads} | _ENTRY_IMPORTS
    besides = {module.partition(".")[0] for module, _ in imports.values()} - set(sys.stdlib_module_names)
    if others := sorted(besides - {"torch", "timm"}):
        description = f"{description.strip()}\n\nIt needs, besides torch and timm: {', '.join(others)}."
    parts = [
        f'"""{description.strip()}\n"""',
        "from __future__ import annotations",
        _import_lines(imports),
        *body,
        _entry_point(name, arguments, pretrained_cfg),
    ]
    return "\n\n".join(parts[:3]) + "\n\n\n" + "\n\n\n".join(parts[3:]) + "\n"


def _collect(module: ModuleType, found: dict[ModuleType, None]) -> None:
    """Add `module` to `found`, after the modules of search_spaces whose definitions it imports.

    Raises ValueError for an import whose names would mean nothing where the definitions are copied to.
    """
    if module in found:
        return
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        ours = [alias for alias in node.names if (origin or alias.name).partition(".")[0] in _INTERNAL]
        if any(alias.asname for alias in ours) or (ours and not origin.startswith("search_spaces.")):
            raise ValueError(
                f"{module.__name__} has `{ast.unparse(node)}`, which a standalone file cannot hold; import names from "
                "the modules of search_spaces, as in `from search_spaces.layers import ConvNorm`"
            )
        for alias in ours:
            value = getattr(sys.modules[origin], alias.name)
            if origin != "search_spaces.mixers":
                _collect(sys.modules[origin], found)
            elif isinstance(value, type):  # the table of mixers itself is written anew, of those in use
                _collect(sys.modules[value.__module__], found)
    found[module] = None


def _read(module: ModuleType, definitions: dict[str, _Definition], imports: dict[str, tuple[str, str]]) -> None:
    """Add the top-level definitions and the external imports of `module`. Raises ValueError for a name used twice."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    body = ast.parse(source).body
    for position, node in enumerate(body):
        if isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name.partition(".")[0]: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            root = (node.module or "").partition(".")[0]
            if root not in (*_INTERNAL, "__future__"):
                imports |= {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}
        elif name := _defined_name(node):
            if name in definitions:
                raise ValueError(f"{name} is defined twice among the sources of the network; rename one")
            end = node.end_lineno
            following = body[position + 1] if position + 1 < len(body) else None
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_text(following):
                assert following is not None
                end = following.end_lineno
            reads = frozenset(child.id for child in ast.walk(node) if isinstance(child, ast.Name))
            definitions[name] = _Definition("\n".join(lines[_start(node, lines) : end]), reads)


def _defined_name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else None


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _start(node: ast.stmt, lines: list[str]) -> int:
    """Index of the first line: decorators and the comment directly above belong to a definition."""
    first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))]) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    return first


def _closure(root: str, definitions: Mapping[str, _Definition]) -> set[str]:
    needed, waiting = set(), [root]
    while waiting:
        name = waiting.pop()
        if name in definitions and name not in needed:
            needed.add(name)
            waiting += definitions[name].reads
    return needed


def _mixer_table(classes: Mapping[str, str]) -> _Definition:
    rows = "".join(f'    "{family}": {name},\n' for family, name in classes.items())
    return _Definition(f"MIXERS: dict[str, type[nn.Module]] = {{\n{rows}}}", frozenset({*classes.values(), "nn"}))


def _import_lines(imports: Mapping[str, tuple[str, str]]) -> str:
    plain = sorted({module for module, name in imports.values() if not name})
    froms: dict[str, list[str]] = {}
    for key, (module, name) in sorted(imports.items()):
        if name:
            froms.setdefault(module, []).append(name if key == name else f"{name} as {key}")
    out = [f"import {module}" for module in plain]
    out += [f"from {module} import {', '.join(names)}" for module, names in sorted(froms.items())]
    standard = [line for line in out if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    return "\n".join(standard) + "\n\n" + "\n".join(line for line in out if line not in standard)


def _entry_point(name: str, arguments: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]) -> str:
    lines = ["default_cfgs = generate_default_cfgs(", "    {", f'        "{name}": {{']
    lines += [f'            "{key}": {_literal(value)},' for key, value in pretrained_cfg.items()]
    lines += ['            "file": str(Path(__file__).with_name("model.safetensors")),', "        }", "    }", ")"]
    stages = _stage_lines(arguments["stages"])
    rest = [f'    "{key}": {_literal(value)},' for key, value in arguments.items() if key != "stages"]
    lines += ["", "_ARGUMENTS: dict[str, Any] = {", '    "stages": [', *stages, "    ],", *rest, "}"]
    indices = tuple(range(len(arguments["stages"])))
    lines += [
        "",
        "",
        "@register_model",
        f"def {name}(pretrained: bool = False, **kwargs: Any) -> MetaFormerNet:",
        '    """The searched network in its folded form; `kwargs` override its arguments, as in timm."""',
        "    return build_model_with_cfg(",
        "        MetaFormerNet,",
        f'        "{name}",',
        "        pretrained,",
        f'        feature_cfg={{"out_indices": {indices}, "flatten_sequential": True}},',
        "        **{**_ARGUMENTS, **kwargs},",
        "    )",
    ]
    return "\n".join(lines)


def _stage_lines(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = []
    for stage in stages:
        lines += ["        {", *(f'            "{k}": {_literal(v)},' for k, v in stage.items() if k != "blocks")]
        lines += ['            "blocks": [', *(f"                {_literal(block)}," for block in stage["blocks"])]
        lines += ["            ],", "        },"]
    return lines


def _literal(value: Any) -> str:
    """Python source of numbers, plain words and containers of them, with double quotes as in the other sources."""
    return repr(value).replace("'", '"')
