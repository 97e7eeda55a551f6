"""Networks of policies under the names of the network they come from, to look at what they run.

What surgery makes of an over-parameterised network calls its layers otherwise; there, operations are switched instead.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from backends import forwards
from backends.mixed_operation import Cell, MixedOperation, Zero, mixed_operations, set_operations
from backends.surgery import extract
from compsearch.space import Policy, SearchSpace


def networks_of(model: nn.Module, space: SearchSpace) -> Callable[[Policy], nn.Module]:
    """What gives the network of a policy of `space`, whose parts have the names they have in `model`.

    `model` is not changed. A network may change when the next one is asked for: look at one at a time.
    """
    if not mixed_operations(model):
        return lambda policy: extract(model, space, policy)
    switched = forwards.copied(model)
    cells = {
        name: module
        for name, module in switched.named_modules()
        if isinstance(module, Cell) and module.has_shortcut and isinstance(module.operation, MixedOperation)
    }

    def network(policy: Policy) -> nn.Module:
        for name, cell in cells.items():
            switched.set_submodule(name, cell)
        set_operations(switched, space, space.operations(policy))
        for name, cell in cells.items():
            mixed = cell.operation
            assert isinstance(mixed, MixedOperation)
            if isinstance(mixed.candidates[mixed.active], Zero):
                # What adds its input to nothing is not there, in the derived network either.
                switched.set_submodule(name, nn.Identity())
        return switched

    return network
