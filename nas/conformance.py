"""The contract of a token mixer as checks that name the clause that is broken. For mixers of a user's own: those of
the program are tested more widely.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UsageError
from nas.export.standalone import standalone_source
from nas.quantize.graph import quantization_points, tensors_read, trace
from nas.trace import trace_module
from search_spaces.architecture import NORMS, Architecture, Block, Stage
from search_spaces.channel_mixers import Mlp
from search_spaces.elastic import shared_index
from search_spaces.mixers import MIXERS, TokenMixer
from search_spaces.network import MetaFormerBlock, MetaFormerNet, bound_size, build_network, fold, network_kwargs
from search_spaces.plugin import Plugin, install

SIDE, WIDE, NARROW, ROLE_WIDTH, CLASSES = 8, 48, 32, 16, 4
"""Side of the map in pixels, widths in channels, and number of classes, at which mixers are tried."""


class Broken(ValueError):
    """What was found where a clause wants something else."""


def check_plugin(plugin: Plugin) -> None:
    """Install the plugin and try every mixer of it. Raises UsageError: one line with the mixer and the clause."""
    try:
        families = install(plugin)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for family in families:
        for clause, check in CLAUSES.items():
            try:
                with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(check is _gradient_reaches_everything):
                    torch.manual_seed(0)
                    check(family)
            except Exception as error:  # it is the user's code that runs
                found = (str(error).splitlines() or [""])[0]
                kind = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
                raise UsageError(
                    f"plugin {plugin.path}: mixer {family!r} breaks the contract ({clause}): {kind}{found}"
                ) from error


def _builds_and_keeps_the_shape(family: str) -> None:
    for kernel in MIXERS[family].kernels:
        for dim in (NARROW, WIDE):
            x = torch.randn(2, dim, SIDE, SIDE)
            y = _mixer(family, dim, kernel)(x)
            if not isinstance(y, Tensor) or y.shape != x.shape:
                raise Broken(f"{list(x.shape)} is wanted, but got {list(getattr(y, 'shape', []))}")
            if not bool(y.isfinite().all()):
                raise Broken("the output is not finite")


def _takes_every_map(family: str) -> None:
    if MIXERS[family].token_bound:
        return
    for side in (1, 2, 5, 14):
        shape = [1, NARROW, side, side]
        if list(_mixer(family, NARROW, MIXERS[family].kernels[-1], side)(torch.randn(shape)).shape) != shape:
            raise Broken(f"a map of {side}x{side} changes its shape; set token_bound when weights depend on its size")


def _narrow_is_a_part_of_wide(family: str) -> None:
    wide = _mixer(family, WIDE, MIXERS[family].kernels[-1]).state_dict()
    for name, tensor in _mixer(family, NARROW, MIXERS[family].kernels[0]).state_dict().items():
        if name not in wide:
            raise Broken(f"{name} is in the narrow mixer and not in the wide one")
        shared_index(tuple(wide[name].shape), tuple(tensor.shape))


def _expansion_is_declared(family: str) -> None:
    """The supernet takes blocks of other expansions for the same where neither of the two attributes is set."""
    mixer = MIXERS[family]
    if mixer.expands or mixer.replaces_block:
        return
    one, other = (_mixer(family, NARROW, mixer.kernels[-1], expansion=expansion) for expansion in (1.0, 3.0))
    state, shapes = one.state_dict(), {name: tensor.shape for name, tensor in other.state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} == shapes:
        other.load_state_dict(state)
        x = torch.randn(2, NARROW, SIDE, SIDE)
        if torch.equal(one(x), other(x)):
            return
    raise Broken("the mixer depends on `expansion`; give its class expands = True")


def _channel_matrices_are_those_of_an_mlp(family: str) -> None:
    """By name, by shape, and in that their scale does not matter."""
    kernel = MIXERS[family].kernels[-1]
    x = torch.randn(4, NARROW, SIDE, SIDE)
    for name, layer in MIXERS[family].channel_matrices:
        for dim, expansion in ((NARROW, 2.0), (WIDE, 3.0)):
            weights = dict(_mixer(family, dim, kernel, expansion=expansion).named_parameters())
            wanted = dict(Mlp(dim, expansion, "gelu").named_parameters())
            if f"{layer}.weight" not in wanted:
                raise Broken(f'("LAYER.weight", "fc1" or "fc2") is wanted, but got {(name, layer)!r}')
            if name not in weights:
                raise Broken(f"there is no weight {name!r}; it has {', '.join(weights)}")
            shapes = [list(tensor.shape) for tensor in (weights[name], wanted[f"{layer}.weight"])]
            if not name.endswith(".weight") or shapes[0] != shapes[1]:
                raise Broken(f"{name} of shape {shapes[0]} cannot be the weight of {layer}, of shape {shapes[1]}")
        mixer = _mixer(family, NARROW, kernel).train()
        for module in mixer.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)  # one that begins with zeros would hide everything
        before = mixer(x)
        dict(mixer.named_parameters())[name].mul_(2)
        if not torch.allclose(mixer(x), before, rtol=1e-3, atol=1e-4):
            raise Broken(f"{name} is not followed by a BatchNorm, which would give it its scale")


def _roles_stay(family: str) -> None:
    """With zeros for all that the narrow mixer has not, the wide one must compute what it does."""
    kernel = MIXERS[family].kernels[-1]
    narrow, wide = _mixer(family, NARROW, kernel), _mixer(family, WIDE, kernel)
    if any("LayerNorm" in type(module).__name__ or isinstance(module, nn.GroupNorm) for module in wide.modules()):
        return  # a mean over channels is one over the zeros too
    learned, state = dict(wide.named_parameters()), wide.state_dict()
    for name, small in narrow.state_dict().items():
        if name in learned:
            state[name] = torch.zeros_like(state[name])
            state[name][tuple(slice(0, size) for size in small.shape)] = small
        elif small.shape == state[name].shape:
            state[name] = small
    wide.load_state_dict(state)
    x = torch.zeros(2, WIDE, SIDE, SIDE)
    x[:, :NARROW] = torch.randn(2, NARROW, SIDE, SIDE)
    expected, got = narrow(x[:, :NARROW]), wide(x)[:, :NARROW]
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-4):
        raise Broken(
            "the leading channels of the wide mixer do not compute what the narrow one does; give channels of "
            "different roles tensors of their own, or lay them out by role_width"
        )


def _folds(family: str) -> None:
    for norm in NORMS:
        network, arch = _network(family, norm)
        folded = fold(network)
        x = torch.randn(2, NARROW, SIDE, SIDE)
        block, merged = (form.get_submodule("stages.0.blocks.0") for form in (network, folded))
        expected = block(x)
        error = float((merged(x) - expected).norm() / expected.norm())
        if not error <= 1e-5:
            raise Broken(f"folded, the block differs by {error:.1e} of its output, and 1e-5 is allowed")
        if any(isinstance(module, nn.BatchNorm2d) for module in merged.modules()):
            raise Broken("a BatchNorm2d is left after folding; give the mixer a fold_() that merges it")
        rebuilt = MetaFormerNet(**network_kwargs(arch), num_classes=CLASSES, deploy=True).state_dict()
        if {k: v.shape for k, v in rebuilt.items()} != {k: v.shape for k, v in folded.state_dict().items()}:
            raise Broken("a network built in folded form has other tensors than a folded one")


def _is_costed(family: str) -> None:
    kernel, bound = MIXERS[family].kernels[-1], bound_size(family, SIDE)
    with torch.device("meta"):
        block = MetaFormerBlock(NARROW, family, kernel, 2.0, "batchnorm", "relu", ROLE_WIDTH, **bound)
    trace_module(block, [(1, NARROW, SIDE, SIDE)], family)


def _is_quantized(family: str) -> None:
    network, arch = _network(family, "batchnorm")
    folded = fold(network)
    graph = trace(folded)
    tensors_read(folded, graph, quantization_points(folded, graph, arch))


def _gradient_reaches_everything(family: str) -> None:
    mixer = _mixer(family, NARROW, MIXERS[family].kernels[-1]).train()
    mixer(torch.randn(4, NARROW, SIDE, SIDE)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        if parameter.grad is None:
            raise Broken(f"no gradient reaches {name}; weights that are not learned must be buffers")


def _is_exported(family: str) -> None:
    from nas.export.onnx_files import export_graph

    network, arch = _network(family, "batchnorm")
    arguments = network_kwargs(arch) | {"deploy": True}
    source, _, _ = standalone_source("network", family, arguments, {}).partition("default_cfgs =")
    names: dict[str, Any] = {"__name__": __name__}
    exec(source, names)  # nothing of ours is in sight: what the file lacks is missing here too
    names["MetaFormerNet"](**arguments, num_classes=CLASSES).eval()(torch.zeros(1, 3, 2 * SIDE, 2 * SIDE))
    export_graph(fold(network), (1, 3, 2 * SIDE, 2 * SIDE))
    beside = [{"blocks": [{"mixer": other} for other in MIXERS]}]  # in one file with any other, whose names it may have
    standalone_source("network", family, arguments | {"stages": beside}, {})


CLAUSES: dict[str, Callable[[str], None]] = {
    "keeps the shape": _builds_and_keeps_the_shape,
    "takes every map": _takes_every_map,
    "a narrow mixer is a part of a wide one": _narrow_is_a_part_of_wide,
    "expansion is declared": _expansion_is_declared,
    "channel_matrices": _channel_matrices_are_those_of_an_mlp,
    "channels keep their roles": _roles_stay,
    "gradient reaches every parameter": _gradient_reaches_everything,
    "folds exactly": _folds,
    "known to the cost model": _is_costed,
    "known to the quantizer": _is_quantized,
    "exports": _is_exported,
}
"""Clause -> its check of one registered mixer, which raises when it does not hold. Cheap ones first."""


def _mixer(family: str, dim: int, kernel: int, size: int = SIDE, expansion: float = 2.0) -> TokenMixer:
    make: Any = MIXERS[family]
    bound = bound_size(family, size)
    mixer = make(dim, kernel=kernel, expansion=expansion, role_width=ROLE_WIDTH, activation="gelu", **bound)
    return mixer.eval()


def _network(family: str, norm: str) -> tuple[MetaFormerNet, Architecture]:
    """A network of one block, its BatchNorms far from the identity, and its architecture."""
    block = Block(family, MIXERS[family].kernels[-1], 2.0)
    arch = Architecture(2 * SIDE, "conv3s2", (Stage(NARROW, ROLE_WIDTH, norm, "relu", (block,)),))
    network = build_network(arch, CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
    return network, arch
