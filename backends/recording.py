"""What one forward does to memory: which operations run, what each reads and writes, and what is alive meanwhile.

Elements are numbers of any floating-point type, one each, as if the network ran in float32; whole numbers and truth
values (a max-pool's indices) count by their bytes, four to an element.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backends.forwards import output_tensors, undisturbed
from backends.label_layers import LAYERS, batch_norm, convolution, matrix_product
from backends.label_values import FILLS
from backends.operations import is_composite
from backends.surgery import named_tensors, plain_tensors
from compsearch.space import FloatArray

#: Operations that are a layer when one of their operands is the layer's weight.
_PRODUCTS = frozenset(name for name, rule in LAYERS.items() if rule in (convolution, matrix_product))
_BATCH_NORMS = frozenset(name for name, rule in LAYERS.items() if rule is batch_norm)
#: Fills that reserve memory and leave it as it is: no operation at all.
_RESERVATIONS = frozenset(name for name in FILLS if "empty" in name)
#: In-place operations that don't look at what they write over.
_OVERWRITES = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_"})


@dataclass(frozen=True, eq=False)
class Recording:
    """The operations of one forward in order, views left out, and the memory between them.

    Arrays are [num_ops], in elements, for the whole batch. `layer_names` are empty for operations that are no layer,
    `places` are the modules that ran them. `lifetimes` are the first and the last operation at which each piece of
    activation memory is alive.
    """

    ops: tuple[str, ...]
    layer_names: tuple[str, ...]
    places: tuple[str, ...]
    lifetimes: tuple[tuple[int, int], ...]
    activations_read: FloatArray
    constants_read: FloatArray
    elements_written: FloatArray
    alive: FloatArray


def record(module: nn.Module, inputs: Sequence[Any], layers: Mapping[str, str]) -> Recording:
    """Runs `module` on `inputs` without gradients and says what happened.

    `layers` are layer names by the name of their weight. Parameters, buffers and tensors held by modules are constants:
    they are read, but are no activation memory. An in-place operation writes, but makes no memory. Memory is alive from
    the operation that makes it to the last one that reads it or a view of it; the inputs from the start, the output to
    the end. That is what a runtime needs that frees at the last use: eager PyTorch may hold more, as long as a Python
    variable names a tensor, and layers may use scratch memory of their own.
    """
    recorder = _Recorder(module, inputs, layers)
    handles = [
        handle
        for name, part in module.named_modules()
        for handle in (
            part.register_forward_pre_hook(functools.partial(_enter, recorder.places, name)),
            part.register_forward_hook(functools.partial(_leave, recorder.places)),
        )
    ]
    try:
        with undisturbed(), torch.no_grad(), recorder:
            output = module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.recording(output_tensors(output))


def _enter(places: list[str], name: str, module: nn.Module, inputs: Any) -> None:
    places.append(name)


def _leave(places: list[str], module: nn.Module, inputs: Any, output: Any) -> None:
    places.pop()


@dataclass
class _Memory:
    """One piece of activation memory: how many elements, and the operations between which it is alive."""

    elements: float
    first: int
    last: int


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, module: nn.Module, inputs: Sequence[Any], layers: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: The modules that are running, outermost first.
        self.places: list[str] = []
        self._rows: list[tuple[str, str, str, float, float, float]] = []
        #: Everything seen is held on to, so that no freed storage's identity is given to another.
        self._storages: list[torch.UntypedStorage] = []
        self._memory: dict[int, _Memory] = {}
        self._layers: dict[int, str] = {}
        for name, tensor in named_tensors(module):
            if name in layers:
                self._layers[self._identity(tensor)] = layers[name]
        self._constants = {self._identity(tensor) for _, tensor in named_tensors(module)}
        self._constants |= {self._identity(tensor) for tensor in plain_tensors(module)}
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                # Given as part of a larger batch, only that part is the input.
                self._make(leaf, last=-1, elements=_elements(leaf))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps PyTorch from importing its compiler (seconds) to wrap this mode, which is never compiled."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func._schema.name).partition("::")[2]
        # In inference mode, composite operations come whole.
        if name not in LAYERS and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in _BATCH_NORMS:
            # Batch statistics are made in training only; on the meta device an empty result has a shape nevertheless.
            outputs = outputs[:1]
        operands = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        written, results = _written(func, args, kwargs)
        made = [tensor for tensor in outputs if not self._is_known(tensor, operands)]
        if name in _RESERVATIONS or not (made or written):
            for tensor in made:
                self._make(tensor, last=-1)
            # What is left is a view, or (without any result) a look at values, which has to read them.
            if outputs or not operands:
                return result
        self._add(name, [tensor for tensor in operands if id(tensor) not in results], written, made)
        return result

    def recording(self, outputs: Sequence[Tensor]) -> Recording:
        """What was recorded, `outputs` being what the network returned."""
        num_ops = len(self._rows)
        for tensor in outputs:
            if self._identity(tensor) in self._memory:
                self._memory[self._identity(tensor)].last = num_ops - 1
        # What was reserved and never touched is not alive at any operation.
        lifetimes = [(memory.first, memory.last) for memory in self._memory.values()]
        changes = np.zeros(num_ops + 1)
        for (first, last), memory in zip(lifetimes, self._memory.values(), strict=True):
            if first <= last:
                changes[first] += memory.elements
                changes[last + 1] -= memory.elements
        ops, layer_names, places, *amounts = zip(*self._rows, strict=True) if self._rows else [()] * 6
        activations, constants, written = (np.array(values, dtype=np.float64) for values in amounts)
        return Recording(
            ops=tuple(ops),
            layer_names=tuple(layer_names),
            places=tuple(places),
            lifetimes=tuple(lifetimes),
            activations_read=activations,
            constants_read=constants,
            elements_written=written,
            alive=np.cumsum(changes)[:num_ops],
        )

    def _add(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        layer = next((self._layers[key] for key in map(self._identity, read) if key in self._layers), "")
        place = len(self._rows)
        activations = constants = 0.0
        for tensor in {id(tensor): tensor for tensor in read}.values():
            if name in _OVERWRITES and any(tensor is target for target in written):
                continue
            memory = self._memory.get(self._identity(tensor))
            if memory is None:
                constants += _elements(tensor)
            else:
                activations += _elements(tensor)
                memory.last = place
        for tensor in made:
            self._make(tensor, last=place)
        for tensor in written:
            if self._identity(tensor) in self._memory:
                self._memory[self._identity(tensor)].last = place
        amount = sum(map(_elements, (*made, *written)))
        row = (name, layer if name in _PRODUCTS else "", self.places[-1] if self.places else "")
        self._rows.append((*row, activations, constants, amount))

    def _make(self, tensor: Tensor, *, last: int, elements: float | None = None) -> None:
        if elements is None:
            elements = tensor.untyped_storage().nbytes() / tensor.element_size() * _elements_each(tensor.dtype)
        self._memory.setdefault(self._identity(tensor), _Memory(elements, len(self._rows), last))

    def _is_known(self, tensor: Tensor, operands: Sequence[Tensor]) -> bool:
        """Whether it lies in memory that was there before."""
        identity = self._identity(tensor)
        if identity in self._memory or identity in self._constants:
            return True
        return any(identity == self._identity(operand) for operand in operands)

    def _identity(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._storages.append(storage)
        return int(storage._cdata)


def _elements(tensor: Tensor) -> float:
    """Distinct elements of a tensor: repeated ones (of an expanded tensor) count once."""
    distinct = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= size if stride else min(size, 1)
    return distinct * _elements_each(tensor.dtype)


def _elements_each(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return 1.0
    return 2.0 if dtype.is_complex else dtype.itemsize / 4


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], set[int]]:
    """The tensors that an operation writes into, and which of them (by id) it is given only to hold the result."""
    if torch.Tag.inplace_view in func.tags:
        return [], set()
    written: list[Tensor] = []
    results: set[int] = set()
    for index, name, is_result in _written_arguments(func):
        value = kwargs.get(name) if index is None else args[index] if index < len(args) else kwargs.get(name)
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        written.extend(tensors)
        if is_result:
            results.update(map(id, tensors))
    return written, results


@functools.cache
def _written_arguments(func: Any) -> tuple[tuple[int | None, str, bool], ...]:
    """Of each argument that is written into: its place unless by keyword only, its name, and if it is an `out`."""
    return tuple(
        (None if argument.kwarg_only else index, argument.name, argument.is_out)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
