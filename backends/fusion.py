"""A network as a list of steps, each convolution together with the norm, addition and activation that follow it.

A plan is made from the code of a network (torch.fx), not from its weights or sizes, so that one plan serves every
network extracted from the same dense one. Two things read it: fast inference, which computes a step in one kernel, and
sequential least squares, which refits a step's layer to what the dense network has after the step's addition.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity, with the name and scalars oneDNN's fused kernels know it by.

    It is constant up to `flat_below` and from `flat_above` on.
    """

    name: str
    scalars: tuple[float, ...] = ()
    flat_below: float = 0.0
    flat_above: float = math.inf

    def __call__(self, x: Tensor) -> Tensor:
        """Of `x`, in place where torch can."""
        if self.name == "relu":
            return x.relu_()
        if self.name == "hardtanh":
            return x.clamp_(*self.scalars)
        assert self.name == "hardswish", self.name
        return F.hardswish(x, inplace=True)


RELU = Activation("relu")
RELU6 = Activation("hardtanh", (0.0, 6.0), flat_above=6.0)
HARDSWISH = Activation("hardswish", flat_below=-3.0)

_ACTIVATION_MODULES: Mapping[type, Activation] = {nn.ReLU: RELU, nn.ReLU6: RELU6, nn.Hardswish: HARDSWISH}
_ACTIVATION_FUNCTIONS: Mapping[Any, Activation] = {
    F.relu: RELU,
    F.relu_: RELU,
    torch.relu: RELU,
    torch.relu_: RELU,
    "relu": RELU,
    "relu_": RELU,
    F.relu6: RELU6,
    F.hardswish: HARDSWISH,
}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
#: What a layer step runs.
AnyLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Slot:
    """Where a value is kept while the plan runs; stands for the value in a step's arguments."""

    index: int


@dataclass(frozen=True)
class LayerStep:
    """``activation(norm(layer(input)) + other)``, where norm, other and activation may be missing.

    `layer` and `norm` are module paths, the others slots.
    """

    layer: str
    input: int
    output: int
    norm: str | None = None
    other: int | None = None
    activation: Activation | None = None


@dataclass(frozen=True)
class CallStep:
    """Any other operation: a module's path, a function, a method's name or an attribute's path, as `kind` says.

    `args` and `kwargs` hold `Slot` where a computed value goes.
    """

    kind: str
    target: Any
    args: Any
    kwargs: Any
    output: int


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can run. The network's input is in slot 0, its result in slot `result`.

    ``last_read[i]`` are the slots no step after ``steps[i]`` reads.
    """

    steps: tuple[LayerStep | CallStep, ...]
    last_read: tuple[tuple[int, ...], ...]
    num_slots: int
    result: int


def make_plan(network: nn.Module) -> Plan | None:
    """The plan of `network` as it runs in its present mode; None when its code can't be traced.

    `network` is not changed, but what it computes must not depend on values: it is traced, not run. It takes one tensor
    and returns one.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # whatever the network's own code raises when it meets a proxy in place of a tensor
        return None
    nodes = [node for node in graph.nodes if node.users or node.op not in ("get_attr", "placeholder")]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if any(node.users for node in placeholders[1:]) or not placeholders:
        return None
    modules = dict(network.named_modules())
    if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in nodes):
        return None  # the tracer has put a tensor into this network that others don't have
    return _Planner(modules, nodes).plan(placeholders[0])


class _Planner:
    def __init__(self, modules: Mapping[str, nn.Module], nodes: list[fx.Node]) -> None:
        self._modules = modules
        self._nodes = nodes
        self._order = {node: index for index, node in enumerate(nodes)}
        self._slots: dict[fx.Node, int] = {}

    def plan(self, placeholder: fx.Node) -> Plan | None:
        self._slots[placeholder] = 0
        chains = self._chains()
        inside = {node for chain in chains.values() for node in chain[:-1]}
        steps: list[LayerStep | CallStep] = []
        result: int | None = None
        for node in self._nodes:
            if node.op == "placeholder" or node in inside:
                continue
            if node.op == "output":
                returned = node.args[0]
                result = self._slots[returned] if isinstance(returned, fx.Node) else None
                break
            self._slots[node] = len(self._slots)
            steps.append(self._layer_step(chains[node]) if node in chains else self._call_step(node))
        if result is None:
            return None
        return Plan(tuple(steps), _last_read(steps, result), len(self._slots), result)

    def _chains(self) -> dict[fx.Node, list[fx.Node]]:
        """Nodes that make one step, beginning with the layer, by their last node."""
        chains: dict[fx.Node, list[fx.Node]] = {}
        taken: set[fx.Node] = set()
        # Later layers first: of two that meet in one addition, the later takes it, when the other is ready.
        for node in reversed(self._nodes):
            if not self._is_module(node, _LAYERS) or len(node.args) != 1 or node.kwargs:
                continue
            chain = [node]
            for extends in (self._is_norm, self._is_addition, self._is_activation):
                followers = list(chain[-1].users)
                if len(followers) == 1 and followers[0] not in taken and extends(followers[0], chain[-1]):
                    chain.append(followers[0])
            taken.update(chain)
            chains[chain[-1]] = chain
        return chains

    def _is_module(self, node: fx.Node, kinds: tuple[type, ...]) -> bool:
        # Exactly these classes, without hooks: a subclass or a hook may compute something else.
        if node.op != "call_module":
            return False
        module = self._modules[str(node.target)]
        hooks = module._forward_hooks or module._forward_pre_hooks
        return type(module) in kinds and not hooks

    def _is_norm(self, node: fx.Node, before: fx.Node) -> bool:
        if not self._is_module(node, _NORMS):
            return False
        norm = self._modules[str(node.target)]
        is_linear = isinstance(self._modules[str(before.target)], nn.Linear)
        return norm.running_mean is not None and not norm.training and not is_linear

    def _is_addition(self, node: fx.Node, before: fx.Node) -> bool:
        operands = node.args
        return (
            node.op in ("call_function", "call_method")
            and node.target in _ADDITIONS
            and not node.kwargs
            and len(operands) == 2
            and all(isinstance(operand, fx.Node) for operand in operands)
            and operands[0] is not operands[1]
        )

    def _is_activation(self, node: fx.Node, before: fx.Node) -> bool:
        return self._activation(node) is not None

    def _activation(self, node: fx.Node) -> Activation | None:
        if node.op == "call_module":
            kind = type(self._modules[str(node.target)])
            return _ACTIVATION_MODULES.get(kind) if self._is_module(node, (kind,)) else None
        known = node.op in ("call_function", "call_method") and set(node.kwargs) <= {"inplace"} and len(node.args) == 1
        return _ACTIVATION_FUNCTIONS.get(node.target) if known else None

    def _layer_step(self, chain: list[fx.Node]) -> LayerStep:
        layer, norm, other, activation = chain[0], None, None, None
        for before, node in itertools.pairwise(chain):
            if self._is_module(node, _NORMS):
                norm = str(node.target)
            elif node.target in _ADDITIONS:
                [addend] = [operand for operand in node.args if operand is not before]
                assert isinstance(addend, fx.Node)
                other = self._slots[addend]
            else:
                activation = self._activation(node)
        [source] = layer.args
        assert isinstance(source, fx.Node)
        return LayerStep(str(layer.target), self._slots[source], self._slots[chain[-1]], norm, other, activation)

    def _call_step(self, node: fx.Node) -> CallStep:
        def slot(argument: fx.Node) -> Slot:
            return Slot(self._slots[argument])

        args, kwargs = fx.map_arg((node.args, node.kwargs), slot)  # type: ignore[arg-type]
        return CallStep(node.op, node.target, args, kwargs, self._slots[node])


def layer_at(network: nn.Module, path: str) -> AnyLayer:
    """The layer of a layer step."""
    layer = network.get_submodule(path)
    assert isinstance(layer, _LAYERS), path
    return layer


def norm_at(network: nn.Module, path: str | None) -> _BatchNorm | None:
    """The norm of a layer step, None where it has none."""
    if path is None:
        return None
    norm = network.get_submodule(path)
    assert isinstance(norm, _BatchNorm), path
    return norm


def slots_read(step: LayerStep | CallStep) -> set[int]:
    """The slots whose values `step` takes."""
    if isinstance(step, LayerStep):
        return {step.input} if step.other is None else {step.input, step.other}
    found: set[int] = set()
    fill(step, lambda slot: found.add(slot.index))
    return found


def fill(step: CallStep, value: Callable[[Slot], Any]) -> tuple[Any, Any]:
    """The step's args and kwargs with the value of every slot in its place."""
    return _filled(step.args, value), _filled(step.kwargs, value)


def _filled(argument: Any, value: Callable[[Slot], Any]) -> Any:
    if isinstance(argument, Slot):
        return value(argument)
    if isinstance(argument, tuple | list):
        return type(argument)(_filled(item, value) for item in argument)
    if isinstance(argument, dict):
        return {key: _filled(item, value) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_filled(part, value) for part in (argument.start, argument.stop, argument.step)))
    return argument


def _last_read(steps: list[LayerStep | CallStep], result: int) -> tuple[tuple[int, ...], ...]:
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        last[step.output] = index  # a result nobody reads
        for slot in slots_read(step):
            last[slot] = index
    last.pop(result, None)
    return tuple(tuple(slot for slot, at in last.items() if at == index) for index in range(len(steps)))
