"""Residual branches that may be skipped, found on the data flow of one forward, whatever the network's code looks like.

A branch is everything between a value ``a`` and an addition ``a + f(a)`` whose result nothing else reads: skipped, the
addition passes on ``a`` alone (Veit et al. 2016, arXiv:1605.06431; the Zero operation of ProxylessNAS, Cai et al. 2019,
arXiv:1812.00332, section 3.1). Shortcuts that compute something, as those that change the stride or the number of
channels, leave no such value; where one branch holds another, the inner one is offered.

Every branch is tried out: the network without it must give what it gives with zeros in the branch's place.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backends import forwards
from backends.label_layers import LAYERS, attention, convolution, matrix_product
from backends.operations import is_composite
from backends.skip_trial import Branch, Places, Site, Trial, operation_name, random_inputs, tensors_in
from backends.surgery import named_tensors
from compsearch.space import KEEP, ZERO, Block, Operation

log = logging.getLogger(__name__)

_PRODUCTS = frozenset(name for name, rule in LAYERS.items() if rule in (attention, convolution, matrix_product))


def residual_blocks(
    model: nn.Module, inputs: tuple[Any, ...], layers: Collection[str], taken: Collection[str]
) -> tuple[Block, ...]:
    """The residual branches of `model` that may be skipped, in forward order, each with operations "keep" and "zero".

    `layers` are the weights of the layers that costs know. Blocks are called after the smallest module with all of the
    branch's modules in it, and never by a name that is in `taken`. The modules of "keep" are those without children
    that are there for the branch alone, in the order they run; with what the last one gives multiplied by zero, the
    network computes what it does without the branch.

    `model` is not changed: copies of it run in eval mode on `inputs`, of which numbers are replaced by random ones.
    Raises ValueError when it doesn't run.
    """

    def run(subject: forwards.Subject) -> _Flow:
        flow = _Flow(forwards.copied(subject.module), layers)
        flow.follow(subject.inputs)
        return flow

    subject, flow = forwards.first_that_runs(model, inputs, run)
    branches = flow.branches()
    trial = Trial(model, random_inputs(inputs, subject.inputs))
    if not trial.holds(branches):
        offered = [branch for branch in branches if trial.holds([branch])]
        log.info("%d of %d residual branches can't be skipped", len(branches) - len(offered), len(branches))
        branches = offered
    names = _names([branch.modules for branch in branches], taken)
    return tuple(
        Block(name, (Operation(KEEP, branch.modules), Operation(ZERO)))
        for name, branch in zip(names, branches, strict=True)
    )


@dataclass(frozen=True)
class _Addition:
    """``operands[0] + operands[1]`` of one shape, which gives `value`."""

    site: Site
    operands: tuple[int, int]
    value: int


@dataclass(frozen=True)
class _Run:
    """One run of a module without children: its place among all such runs, and the values it took and gave."""

    order: int
    taken: frozenset[int]
    given: frozenset[int]


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows values through one forward of `network`; a value is what a tensor's memory holds between two writes.

    Values are numbered in the order they are made, so that what is computed from a value has a higher number.
    """

    def __init__(self, network: nn.Module, layers: Collection[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._network = network
        self._layers = layers
        self._places = Places(network)
        self._weights = {_identity(tensor): name for name, tensor in named_tensors(network)}
        #: The value that is in each piece of memory now.
        self._values: dict[int, int] = {}
        self._alive: list[Any] = []  # memory that is freed may be given to another value
        self._parents: list[frozenset[int]] = []
        self._children: list[list[int]] = []
        #: Where each value was computed, and with which of the network's tensors.
        self._made_in: list[str] = []
        self._made_with: list[frozenset[str]] = []
        self._products: set[int] = set()
        self._additions: list[_Addition] = []
        self._inputs: frozenset[int] = frozenset()
        self._results: frozenset[int] = frozenset()
        self._runs: dict[str, list[_Run]] = {}
        self._order = itertools.count()
        for name, module in network.named_modules():
            if not list(module.children()):
                entered: list[tuple[int, frozenset[int]]] = []
                module.register_forward_pre_hook(functools.partial(self._begin, entered), with_kwargs=True)
                module.register_forward_hook(functools.partial(self._end, entered, name))

    def follow(self, inputs: Sequence[Any]) -> None:
        """Runs the network."""
        self._inputs = frozenset(self._make([tensor], [], []) for tensor in tensors_in(inputs))
        with forwards.undisturbed(), torch.no_grad(), self:
            output = self._network(*inputs)
        self._results = self._read(forwards.output_tensors(output))

    def branches(self) -> list[Branch]:
        """Those that the data flow shows, in forward order, without any that holds another."""
        found = []
        for addition in self._additions:
            for operand in (0, 1):
                values = self._between(addition, operand)
                modules = None if values is None else self._modules_of(values, addition.operands[1 - operand])
                if values is not None and modules is not None:
                    found.append((Branch(modules, addition.site, operand), values, addition.value))
        ends = {end for _, _, end in found}
        return [branch for branch, values, _ in found if ends.isdisjoint(values)]

    def _between(self, addition: _Addition, operand: int) -> set[int] | None:
        """The values from the other operand to this one, if it comes from there alone and nothing else reads them."""
        start, end = addition.operands[1 - operand], addition.operands[operand]
        if start == end or start < 0 or end < 0:
            return None
        before: set[int] = set()
        left = [end]
        while left:
            value = left.pop()
            if value in self._inputs and value != start:
                return None
            if value != start and value not in before:
                before.add(value)
                left.extend(self._parents[value])
        values: set[int] = set()  # without what is computed from constants alone
        for value in sorted(before):
            if any(parent == start or parent in values for parent in self._parents[value]):
                values.add(value)
        if end not in values or self._children[end] != [addition.value] or values & self._results:
            return None
        is_closed = all(values.issuperset(self._children[value]) for value in values - {end})
        return values if is_closed else None

    def _modules_of(self, values: set[int], start: int) -> tuple[str, ...] | None:
        """The modules that are there for these values alone, in the order they run; None unless all layers are."""
        modules = [name for name in self._runs if self._is_for(name, values, start)]
        products = self._products & values
        for product in products:
            layers = self._made_with[product].intersection(self._layers)
            if self._made_in[product] not in modules or not layers:
                return None
        return tuple(sorted(modules, key=lambda name: self._runs[name][0].order)) if products else None

    def _is_for(self, name: str, values: set[int], start: int) -> bool:
        [run, *others] = self._runs[name]
        return (
            not others
            and name in self._unshared
            and bool(run.given)
            and run.given <= values
            and self._varying(run.taken) <= values | {start}
            and self._varying(self._made_by.get(name, ())) <= values
        )

    def _varying(self, values: Iterable[int]) -> set[int]:
        """Those of `values` that are not the same for all inputs."""
        return {value for value in values if self._is_input_dependent[value]}

    @functools.cached_property
    def _is_input_dependent(self) -> list[bool]:
        """Of each value, whether it is an input or computed from one."""
        depends: list[bool] = []
        for value, parents in enumerate(self._parents):
            depends.append(value in self._inputs or any(depends[parent] for parent in parents))
        return depends

    @functools.cached_property
    def _made_by(self) -> Mapping[str, list[int]]:
        """The values that each module made."""
        made: dict[str, list[int]] = {}
        for value, name in enumerate(self._made_in):
            made.setdefault(name, []).append(value)
        return made

    @functools.cached_property
    def _unshared(self) -> Collection[str]:
        """The modules that the network holds once, with tensors that nothing but they hold or read."""
        modules = Counter(id(module) for _, module in self._network.named_modules(remove_duplicate=False))
        parameters = self._network.named_parameters(remove_duplicate=False)
        held = itertools.chain(parameters, self._network.named_buffers(remove_duplicate=False))
        tensors = Counter(_identity(tensor) for _, tensor in held)
        elsewhere = {
            tensor
            for place, used in zip(self._made_in, self._made_with, strict=True)
            for tensor in used
            if tensor.rpartition(".")[0] != place
        }
        return {
            name
            for name, module in self._network.named_modules()
            if modules[id(module)] == 1
            and all(tensors[_identity(tensor)] == 1 for _, tensor in named_tensors(module))
            and elsewhere.isdisjoint(f"{name}.{tensor}" for tensor, _ in named_tensors(module))
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        # In inference mode, composite operations come whole.
        if name not in LAYERS and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        operands = tensors_in([args, kwargs])
        read = self._read(operands)
        site = self._places.addition(name, args)
        sides = [self._values.get(_identity(operand), -1) for operand in args[:2]] if site else []
        result = func(*args, **kwargs)
        before = set(map(_identity, operands))
        outputs = tensors_in(result)
        changed = [tensor for tensor in outputs if _identity(tensor) not in before] + _written(func, args, kwargs)
        if outputs and not changed:
            return result  # a view
        # What has no result looks at values: it reads them, and is part of no branch.
        value = self._make(changed, read, [self._weights[key] for key in before if key in self._weights])
        if name in _PRODUCTS:
            self._products.add(value)
        if site is not None and args[0].shape == args[1].shape:
            self._additions.append(_Addition(site, (sides[0], sides[1]), value))
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps PyTorch from importing its compiler (seconds) to wrap this mode, which is never compiled."""
        return False

    def _read(self, tensors: Sequence[Tensor]) -> frozenset[int]:
        return frozenset(self._values[key] for key in map(_identity, tensors) if key in self._values)

    def _make(self, tensors: Sequence[Tensor], read: Collection[int], weights: Collection[str]) -> int:
        """A new value, in the memory of `tensors`."""
        value = len(self._parents)
        self._parents.append(frozenset(read))
        self._children.append([])
        self._made_in.append(self._places.innermost)
        self._made_with.append(frozenset(weights))
        for parent in read:
            self._children[parent].append(value)
        for tensor in tensors:
            self._values[_identity(tensor)] = value
            self._alive.append(tensor.untyped_storage())
        return value

    def _begin(
        self, entered: list[tuple[int, frozenset[int]]], module: nn.Module, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        entered.append((next(self._order), self._read(tensors_in([args, kwargs]))))

    def _end(
        self, entered: list[tuple[int, frozenset[int]]], name: str, module: nn.Module, args: Any, output: Any
    ) -> None:
        order, taken = entered.pop()
        self._runs.setdefault(name, []).append(_Run(order, taken, self._read(tensors_in(output))))


def _identity(tensor: Tensor) -> int:
    """What all views of one tensor have in common."""
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes into."""
    if torch.Tag.inplace_view in func.tags:
        return []
    written: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            is_positional = not argument.kwarg_only and index < len(args)
            written.extend(tensors_in(args[index] if is_positional else kwargs.get(argument.name)))
    return written


def _names(branches: Sequence[Sequence[str]], taken: Collection[str]) -> Iterator[str]:
    """Of each branch the smallest module that holds all its modules, numbered where that is another one's name."""
    used = set(taken)
    for modules in branches:
        paths = [name.split(".") for name in modules]
        common = [
            parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        ]
        # The whole network has no name.
        lead = ".".join(common) or modules[0]
        candidates = itertools.chain([lead], (f"{lead}.{number}" for number in itertools.count(1)))
        name = next(candidate for candidate in candidates if candidate not in used)
        used.add(name)
        yield name
