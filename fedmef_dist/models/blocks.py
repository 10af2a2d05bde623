"""Where a network can be cut into parts that are computed again in the backward pass."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from fedmef_dist.layers.activation_pruning import Pruning
from fedmef_dist.layers.recompute import recomputed_block, recomputed_parts, recomputed_stages
from fedmef_dist.models.convert import replace_module, weighted_layers


def find_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks; none holds another, nor the output layer.

    A block has two layers with weights or more and stands in a sequence, as residual blocks, inverted residuals, dense
    blocks and a transformer's blocks do, or in the network itself, as inceptions do.
    """
    output = list(weighted_layers(model).values())[-1]
    return [name for name in _blocks_below(model, "") if output not in set(model.get_submodule(name).modules())]


def _blocks_below(parent: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in parent.named_children():
        path = f"{prefix}{name}"
        if _weights(child) < 2 or _is_chain(child):
            continue
        if _is_sequence(child) or (not _is_sequence(parent) and _stands_around_blocks(child)):
            yield from _blocks_below(child, f"{path}.")
        else:
            yield path


def _is_sequence(module: nn.Module) -> bool:
    """Whether it does nothing but call its children, or let its owner call them, one after another."""
    return isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )


def _stands_around_blocks(module: nn.Module) -> bool:
    """Whether its children are sequences of blocks, as those of a transformer's encoder are."""
    return any(_is_sequence(child) and not _is_chain(child) and _weights(child) > 1 for child in module.children())


def _is_chain(module: nn.Module) -> bool:
    """Whether it is a sequence of single layers."""
    return _is_sequence(module) and all(_weights(child) < 2 for child in module.children())


def _weights(module: nn.Module) -> int:
    return len(weighted_layers(module))


def find_chains(model: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """Plain chains of layers, by name, and their stages: children ``[start, stop)``, each up to a pooling."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and _is_chain(module) and _weights(module) > 1:
            stages = _stages(module)
            if stages:
                found[name] = stages
    return found


def _stages(chain: nn.Module) -> list[tuple[int, int]]:
    stages, start, layers = [], 0, list(chain.children())
    for at, layer in enumerate(layers):
        if "Pool" in type(layer).__name__:
            if any(_weights(inner) for inner in layers[start : at + 1]):
                stages.append((start, at + 1))
            start = at + 1
    return stages


def recompute_blocks(model: nn.Module, packs: bool) -> nn.Module:
    """Lets all blocks and stages be computed again in the backward pass; returns the model, which may be another.

    Inside of them nothing is packed without loss; what is pruned stays pruned.

    Args:
        model: with all its layers in place.
        packs: what a block keeps of its input is kept without its zeros where that takes less.
    """
    blocks = find_blocks(model)
    chains = {name: stages for name, stages in find_chains(model).items() if not _inside(name, blocks)}
    for name in blocks:
        replace_module(model, name, recomputed_block(model.get_submodule(name), packs))
    for name, stages in chains.items():
        chain = model.get_submodule(name)
        assert isinstance(chain, nn.Sequential)
        new = recomputed_stages(chain, stages, packs)
        if name:
            replace_module(model, name, new)
        else:
            model = new
    _keep_whole_inside(model)
    return model


def _keep_whole_inside(model: nn.Module) -> None:
    """Lets no layer in a block pack without loss: packed and whole would be alive together, and it takes time."""
    for inside in recomputed_parts(model).values():
        for module in inside:
            pruning = getattr(module, "pruning", None)
            if isinstance(pruning, Pruning) and pruning.is_exact:
                module.pruning = replace(pruning, packs=False)  # type: ignore[assignment]


def _inside(name: str, blocks: list[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)
