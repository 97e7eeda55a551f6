"""Trying out whether residual branches can be skipped: without them, a network must do as if they added zeros.

Data flow says what a branch reads and who reads it; only a run says that the code around its modules works without them
(it may reshape by a number of channels, or add a constant at the end).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from backends import forwards
from backends.label_layers import LAYERS
from backends.operations import is_composite
from backends.skipping import silence, skip
from backends.surgery import rebuild

_ADDITIONS = frozenset({"add", "add_"})
#: Logits of two ways to skip may differ by this fraction of the largest.
_TOLERANCE = 1e-5

#: The module that an addition runs in, and how many ran there up to it.
Site = tuple[str, int]


@dataclass(frozen=True)
class Branch:
    """The branch's modules in the order they run; where its addition is, and which of its two operands it is."""

    modules: tuple[str, ...]
    site: Site
    operand: int


class Places:
    """Knows which modules of a network are running, by hooks, and numbers the additions in each."""

    def __init__(self, network: nn.Module) -> None:
        self._running: list[str] = []
        self._additions: Counter[str] = Counter()
        for name, module in network.named_modules():
            module.register_forward_pre_hook(functools.partial(self._enter, name))
            module.register_forward_hook(self._leave)

    @property
    def innermost(self) -> str:
        """The innermost module that is running; empty for the network itself."""
        return self._running[-1] if self._running else ""

    def addition(self, name: str, args: Sequence[Any]) -> Site | None:
        """The site of an operation that adds two tensors: the module it is in, and the how-manieth there."""
        if name not in _ADDITIONS or len(args) < 2 or not all(isinstance(operand, Tensor) for operand in args[:2]):
            return None
        self._additions[self.innermost] += 1
        return self.innermost, self._additions[self.innermost]

    def _enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._running.append(name)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()


class Trial:
    """Runs a network with branches taken away in three ways, which must give the same."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._module = rebuild(model, _with_values).eval()
        self._inputs = inputs

    def holds(self, branches: Sequence[Branch]) -> bool:
        """Whether the network without the modules of `branches`, and the one whose gates are zero, are the dense one
        with zeros in the place of what the branches add.
        """
        modules = [branch.modules for branch in branches]
        try:
            expected, _ = self._run(branches, lambda network: None, replace=True)
            for change in (skip, silence):
                found, adds_zeros = self._run(branches, functools.partial(change, branches=modules), replace=False)
                if not adds_zeros or not all(map(_is_close, found, expected)) or len(found) != len(expected):
                    return False
        except Exception:  # a forward may raise anything when modules do something else than it was written for
            return False
        return True

    def _run(
        self, branches: Sequence[Branch], change: Callable[[nn.Module], None], *, replace: bool
    ) -> tuple[list[Tensor], bool]:
        """What a changed copy returns, and whether all branches add zeros, which they are made to with `replace`."""
        network = forwards.copied(self._module)
        change(network)
        inputs = tree_map_only(Tensor, Tensor.clone, self._inputs)
        mode = _Addends(network, {branch.site: branch.operand for branch in branches}, replace=replace)
        with forwards.undisturbed(), torch.no_grad(), mode:
            output = network(*inputs)
        return forwards.output_tensors(output), mode.zeros == {branch.site for branch in branches}


class _Addends(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at one operand of each of some additions; with `replace`, puts zeros in its place.

    `zeros` are the additions where it was zero, or was made so.
    """

    def __init__(self, network: nn.Module, operands: Mapping[Site, int], *, replace: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.zeros: set[Site] = set()
        self._operands = operands
        self._replace = replace
        self._places = Places(network)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name not in LAYERS and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        site = self._places.addition(name, args)
        if site is not None and site in self._operands and args[0].shape == args[1].shape:
            operand = args[self._operands[site]]
            if self._replace:
                operand.zero_()  # nothing else reads it
            if not operand.any():
                self.zeros.add(site)
        return func(*args, **kwargs)


def operation_name(func: Any) -> str:
    """As in ATen's native_functions.yaml, without the overload."""
    return str(func._schema.name).partition("::")[2]


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def random_inputs(given: tuple[Any, ...], followed: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of as many images as were `followed`, their numbers random: on zeros, many networks compute zeros."""
    generator = torch.Generator().manual_seed(0)
    leaves, structure = tree_flatten(given)
    inputs = []
    for leaf, like in zip(leaves, tree_leaves(followed), strict=True):
        if isinstance(leaf, Tensor):
            leaf = leaf[: len(like)] if leaf.dim() else leaf
            if leaf.is_floating_point():
                leaf = torch.randn(leaf.shape, generator=generator).to(
                    "cpu" if leaf.is_meta else leaf.device, leaf.dtype
                )
        inputs.append(leaf)
    made: tuple[Any, ...] = tree_unflatten(inputs, structure)
    return made


def _with_values(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, or one of random values where it has none."""
    if not tensor.is_meta:
        return tensor
    generator = torch.Generator().manual_seed(len(name))
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu")
    if tensor.dim() < 2:
        return torch.rand(tensor.shape, generator=generator).to(tensor.dtype) + 0.5
    fan_in = tensor[0].numel()
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype).div(max(fan_in, 1) ** 0.5)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or not found.is_floating_point():
        return found.shape == expected.shape
    return torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max()))
