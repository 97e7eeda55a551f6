"""What a skipped block becomes: modules that give zeros, so that of its addition only the shortcut's side is left."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from backends.mixed_operation import Zero
from compsearch.space import ZERO, Policy, SearchSpace


def skipped_branches(space: SearchSpace, policy: Policy) -> list[tuple[str, ...]]:
    """The modules of each block that `policy` skips, in the order they run.

    Raises ValueError when a block offers more than to be kept or skipped: such a network is not cut out of a dense one.
    """
    chosen = dict(policy.operations)
    branches = []
    for block in space.blocks:
        if len(block.operations) != 2 or block.operations[1].name != ZERO:
            offered = ", ".join(operation.name for operation in block.operations)
            raise ValueError(
                f"a block of a dense network can be kept or skipped, but {block.name!r} offers {offered}; use the "
                "surgery that its space was made for"
            )
        if chosen[block.name] == ZERO:
            branches.append(block.operations[0].modules)
    return branches


def skip(network: nn.Module, branches: Sequence[Sequence[str]]) -> None:
    """Takes the modules of each branch, in the order they run, out of `network`, which is changed.

    The first gives zeros, for what runs next may write into what it is given, which would be the shortcut's own tensor;
    the last does, because functions in between may not map zero to zero. All others pass on what they get.
    """
    for modules in branches:
        for name in modules:
            parent, _, attribute = name.rpartition(".")
            owner = network.get_submodule(parent)
            stands_in = Zero() if name in (modules[0], modules[-1]) else nn.Identity()
            setattr(owner, attribute, stands_in.train(network.get_submodule(name).training))


def silence(network: nn.Module, branches: Sequence[Sequence[str]]) -> None:
    """Multiplies what the last module of each branch gives by zero, by hooks; else `network` stays as it is."""
    for modules in branches:
        network.get_submodule(modules[-1]).register_forward_hook(_nothing)


def is_gone(layer: str, branches: Sequence[Sequence[str]]) -> bool:
    """Whether the module `layer` is one of those skipped."""
    return any(layer in modules for modules in branches)


def _nothing(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output * 0
