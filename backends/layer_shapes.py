"""What each layer of a network computes but for its widths, and the norm and activation that follow it alone.

Recorded as the network runs, so no architecture need be known. Two layers of one shape take the same time at the same
widths, whatever networks they are in: shapes are what latency tables are keyed by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backends import forwards
from backends.macs import Ledger, is_part_of
from backends.surgery import named_tensors
from backends.switching import networks_of
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace

#: Activations that a runtime may compute together with the layer before them.
_MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "hardtanh": nn.ReLU6,  # which is what networks use it for
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm")


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer without its widths.

    `kind` is conv, depthwise, grouped or linear; `kernel`, `stride`, `padding` and `dilation` are empty for linear
    layers. `height` and `width` are those of the input, of a linear layer's the number of tokens and 1. Of a depthwise
    or grouped convolution, `group_in` and `group_out` are the channels that one of its groups reads and writes, 0 for
    others. `norm` and `activation` name the operations that nothing but the layer's output goes into, empty for none.
    """

    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    height: int
    width: int
    group_in: int
    group_out: int
    bias: bool
    norm: str
    activation: str

    @property
    def is_grouped(self) -> bool:
        """Whether the number of outputs follows from that of the inputs."""
        return self.group_in > 0

    @property
    def geometry(self) -> tuple[tuple[int, ...], ...]:
        """Kernel, stride, padding and dilation."""
        return self.kernel, self.stride, self.padding, self.dilation

    def num_groups(self, out_channels: int) -> int:
        """What a convolution with this many outputs has as `groups`."""
        return out_channels // self.group_out if self.is_grouped else 1


def layer_module(shape: LayerShape, ins: int, outs: int) -> nn.Module:
    """A layer of `shape` with its norm and activation, in eval mode; weights are as a new module's."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        if shape.kind == "linear":
            layers.append(nn.Linear(ins, outs, bias=shape.bias))
        else:
            kind = (nn.Conv1d, nn.Conv2d)[len(shape.kernel) - 1]
            layers.append(
                kind(
                    ins,
                    outs,
                    shape.kernel,  # type: ignore[arg-type]  # as long as the kind has dimensions
                    stride=shape.stride,  # type: ignore[arg-type]
                    padding=shape.padding,  # type: ignore[arg-type]
                    dilation=shape.dilation,  # type: ignore[arg-type]
                    groups=shape.num_groups(outs),
                    bias=shape.bias,
                )
            )
    if shape.norm:
        layers.append((nn.BatchNorm2d if len(shape.kernel) == 2 else nn.BatchNorm1d)(outs))
    if shape.activation:
        layers.append(_MODULES[shape.activation]())
    return nn.Sequential(*layers).eval()


def layer_input(shape: LayerShape, ins: int, *, batch_size: int) -> Tensor:
    """A batch for a layer of `shape` with `ins` inputs: random, from a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    if shape.kind == "linear":
        return torch.randn(batch_size * shape.height, ins, generator=generator)
    return torch.randn(batch_size, ins, *(shape.height, shape.width)[: len(shape.kernel)], generator=generator)


@dataclass(frozen=True)
class Widths:
    """Channels that a layer reads or writes, as a function of the units kept per group."""

    fixed: int
    per_unit: IntArray  # [num_groups]

    def __call__(self, counts: FloatArray | IntArray) -> FloatArray:
        """Channels [num_policies] of `counts` [num_policies, num_groups]."""
        channels: FloatArray = counts.astype(np.float64) @ self.per_unit.astype(np.float64) + self.fixed
        return channels

    @property
    def is_constant(self) -> bool:
        return not self.per_unit.any()


@dataclass(frozen=True)
class LayerCall:
    """One run of a layer: how often a forward runs it like this is one each.

    It is run where `block` (its place in the space) has the operation of that index; always, where `block` is -1.
    """

    name: str
    shape: LayerShape
    ins: Widths
    outs: Widths
    block: int = -1
    operation: int = 0


def layer_calls(model: nn.Module, space: SearchSpace, example_input: Tensor) -> list[LayerCall]:
    """Every convolution and linear layer that one forward of `model` runs, in that order, for one image.

    Those of other operations than the dense network's, where they have layers of their own, come behind: the forward
    runs once for each. `model` is not changed. Raises ValueError when it doesn't run on `example_input` [B, C, H, W],
    and where a layer of `space` is not seen to run: a time without it would be a guess.
    """
    names = {layer.parameter: layer.name for layer in space.layers}
    owners = {
        parameter: (number, index)
        for parameter in names
        for number, block in enumerate(space.blocks)
        for index, operation in enumerate(block.operations)
        if is_part_of(parameter, operation.modules)
    }
    # Each operation of every block is met once; the last ones again where blocks have fewer.
    passes = range(1 + max((index for _, index in owners.values()), default=0))

    def run(subject: forwards.Subject) -> list[_Recorder]:
        networks = networks_of(subject.module, space)
        return [_recorded(networks(_with_operation(space, index)), subject.inputs) for index in passes]

    ledger = Ledger(space)
    subject, recorders = forwards.first_that_runs(model, (example_input,), run)
    calls = []
    for index, recorder in zip(passes, recorders, strict=True):
        for record in recorder.layers:
            block, operation = owners.get(record.weight, (-1, 0))
            if record.weight in names and operation == index:
                call = _call(record, names, ledger, recorder, subject.batch_size)
                calls.append(dataclasses.replace(call, block=block, operation=operation))
    unseen = set(names.values()) - {call.name for call in calls}
    if unseen:
        raise ValueError(
            f"a latency table must know every layer, but {', '.join(sorted(unseen))} can't be followed (a weight that "
            "is computed, or an operation that does several at once); limit another resource"
        )
    return calls


def _with_operation(space: SearchSpace, index: int) -> Policy:
    """All channels, and in each block the operation of that index, or the last one."""
    operations = [min(index, len(block.operations) - 1) for block in space.blocks]
    return space.select(space.sizes, np.zeros(space.num_units), operations)


def _recorded(module: nn.Module, inputs: tuple[Any, ...]) -> _Recorder:
    recorder = _Recorder({id_of(tensor): name for name, tensor in named_tensors(module)})
    with forwards.undisturbed(), torch.no_grad(), recorder:
        module(*inputs)
    return recorder


def id_of(tensor: Tensor) -> int:
    """What all views of one tensor have in common."""
    return int(tensor.untyped_storage()._cdata)


@dataclass
class _Record:
    """A layer as it ran; `value` is what it wrote."""

    weight: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    bias: bool
    value: int
    options: Mapping[str, Any] = field(default_factory=dict)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows values (a tensor between two writes) from the operation that makes them to those that read them."""

    def __init__(self, weights: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[_Record] = []
        #: Per value, the operations that read it: their name and the value they make.
        self.readers: dict[int, list[tuple[str, int]]] = {}
        self._weights = weights
        self._values: dict[int, int] = {}
        self._next = 0
        self._alive: list[Tensor] = []  # a storage that is freed may give its address to another

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        read = [self._values.get(id_of(tensor)) for tensor in inputs]
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._alive.extend([*inputs, *outputs])
        name = func._schema.name.partition("::")[2]
        is_in_place = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
        sources = {id_of(tensor) for tensor in inputs}
        if not outputs or (id_of(outputs[0]) in sources and not is_in_place):
            return result  # a view
        self._next += 1
        value = self._next
        for source in {source for source in read if source is not None}:
            self.readers.setdefault(source, []).append((name.rstrip("_"), value))
        for tensor in outputs:
            self._values[id_of(tensor)] = value
        self._note(name, args, value)
        return result

    def _note(self, name: str, args: Sequence[Any], value: int) -> None:
        if name == "convolution":
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args[:9]
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            kind = "transposed" if transposed else "conv"
            self._add(weight, kind, x.shape, bias is not None, value, options)
        elif name in ("addmm", "mm"):
            bias, x, weight = args[:3] if name == "addmm" else (None, *args[:2])
            self._add(weight, "linear", x.shape, bias is not None, value, {})

    def _add(
        self, weight: Tensor, kind: str, input_shape: Any, bias: bool, value: int, options: Mapping[str, Any]
    ) -> None:
        name = self._weights.get(id_of(weight))
        if name is not None:
            shape = tuple(weight.shape)[::-1] if kind == "linear" else tuple(weight.shape)  # it was transposed
            self.layers.append(_Record(name, kind, shape, tuple(input_shape), bias, value, options))

    def only_reader(self, value: int, names: Sequence[str]) -> tuple[str, int] | None:
        """The operation that reads `value`, when it is one alone and of these."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and readers[0][0] in names else None


def _call(record: _Record, names: Mapping[str, str], ledger: Ledger, recorder: _Recorder, batch_size: int) -> LayerCall:
    name = names[record.weight]
    if record.kind == "transposed" or len(record.weight_shape) > 4:
        raise ValueError(
            "a latency table knows linear layers and convolutions of one or two dimensions, but "
            f"{name!r} is {'transposed' if record.kind == 'transposed' else 'of three'}; limit another resource"
        )
    norm = recorder.only_reader(record.value, _NORMS)
    activation = recorder.only_reader(norm[1] if norm else record.value, tuple(_MODULES))
    sizes = record.weight_shape[:2]
    outs, ins = (Widths(*ledger.entries(record.weight, dim, size)) for dim, size in enumerate(sizes))
    groups = record.options.get("groups", 1)
    group_in = group_out = 0
    kind = record.kind
    if groups > 1:
        group_in, group_out = record.weight_shape[1], record.weight_shape[0] // groups
        kind = "depthwise" if group_in == 1 else "grouped"
        # Whole groups go, so that outputs say how many there are.
        ins = Widths(outs.fixed // group_out * group_in, outs.per_unit // group_out * group_in)
    is_linear = kind == "linear"
    shape = LayerShape(
        kind=kind,
        kernel=() if is_linear else record.weight_shape[2:],
        stride=tuple(record.options.get("stride", ())),
        padding=tuple(record.options.get("padding", ())),
        dilation=tuple(record.options.get("dilation", ())),
        height=record.input_shape[0] // batch_size if is_linear else record.input_shape[2],
        width=1 if is_linear or len(record.input_shape) < 4 else record.input_shape[3],
        group_in=group_in,
        group_out=group_out,
        bias=record.bias,
        norm="batch_norm" if norm else "",
        activation=activation[0] if activation else "",
    )
    return LayerCall(name, shape, ins, outs)
