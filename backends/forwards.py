"""Running a network on labels without touching it: on shape-only copies where it can, for real where it must."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from backends.label_layers import LAYERS
from backends.label_moves import MOVES
from backends.label_values import FILLS, VALUES, pointwise
from backends.labels import Labels
from backends.operations import Rules
from backends.surgery import named_tensors, plain_tensors, rebuild
from backends.tracer import Tracer
from compsearch.space import IntArray

_RULES = Rules(LAYERS, VALUES | MOVES, pointwise, FILLS)


Shapes = list[tuple[int, ...]]
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to trace and the input to trace it with; `module` is a copy in eval mode that is run only by copies."""

    module: nn.Module
    inputs: tuple[Any, ...]

    @property
    def batch_size(self) -> int:
        first = next(leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor))
        return int(first.shape[0]) if first.dim() else 1

    def inputs_for(self, *, training: bool) -> tuple[Any, ...]:
        """The inputs; for training at least two images, without which batch norm may refuse."""
        if not training or self.batch_size > 1:
            return self.inputs
        doubled: tuple[Any, ...] = tree_map_only(
            Tensor, lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor, self.inputs
        )
        return doubled


def on_meta(model: nn.Module, inputs: tuple[Any, ...]) -> Subject:
    """A subject of shapes only: no memory, no arithmetic."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        shape = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
    for tensor in plain_tensors(model):
        memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
    inputs = tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), inputs)
    return Subject(copy.deepcopy(model, memo).eval(), inputs)


def for_real(model: nn.Module, inputs: tuple[Any, ...]) -> Subject:
    """A subject with the model's values, for forwards that look at them."""
    return Subject(rebuild(model, lambda _, tensor: tensor).eval(), inputs)


def first_that_runs(
    model: nn.Module, inputs: tuple[Any, ...], run: Callable[[Subject], _Result]
) -> tuple[Subject, _Result]:
    """A subject that `run` takes, with what it gives: on shapes or else on values, of one image or else of all.

    Raises ValueError when it takes none.
    """
    failure: Exception | None = None
    for given in _batches(inputs):
        for prepared in (on_meta, for_real):
            try:
                subject = prepared(model, given)
                return subject, run(subject)
            except Exception as error:  # a forward may raise anything; the next way may work, else the user is told
                failure = error
    message = (str(failure).strip() or type(failure).__name__).splitlines()[0]
    raise ValueError(
        f"the model must run on the example input, but raises {type(failure).__name__}: {message}"
    ) from failure


def _batches(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Copies of the inputs with the first image only, then, where that is less, all."""
    size = next(len(value) for value in inputs if isinstance(value, Tensor) and value.dim())

    def first(tensor: Tensor) -> Tensor:
        return (tensor[:1] if tensor.dim() and len(tensor) == size else tensor).clone()

    yield tree_map_only(Tensor, first, inputs)
    if size > 1:
        yield tree_map_only(Tensor, Tensor.clone, inputs)


def of_one_image(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the inputs with the first image only."""
    return next(_batches(inputs))


def copied(module: nn.Module) -> nn.Module:
    """A copy to run."""
    return rebuild(module, lambda _, tensor: tensor)


def follower(
    module: nn.Module,
    labels: Labels,
    kept: Mapping[tuple[str, int], IntArray],
    dense: Tracer | None = None,
    singles: Sequence[int] | None = None,
) -> Tracer:
    """A tracer of `module`'s parameters and buffers, to which it adds hooks.

    `kept` says which entries of a dimension of a tensor are left of the dense network; a dimension not named is whole.
    `dense` is then the tracer of the dense network. `singles` are as `Tracer` takes them.
    """
    tensors = []
    for name, tensor in named_tensors(module):
        axes = (labels.axis(name, dim) for dim in range(tensor.dim()))
        left = [axis[kept[name, dim]] if (name, dim) in kept else axis for dim, axis in enumerate(axes)]
        tensors.append((name, tensor, tuple(map(torch.from_numpy, left))))
    tracer = Tracer(labels, tensors, _RULES, dense, singles)
    for name, part in module.named_modules():
        part.register_forward_pre_hook(functools.partial(_enter, tracer, name))
        part.register_forward_hook(functools.partial(_leave, tracer))
    return tracer


def follow(tracer: Tracer, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Shapes, list[Tensor]]:
    """Runs `module` on `inputs` under its tracer; returns its output's shapes and labels, which are frozen."""
    tracer.enter(inputs)
    with undisturbed(), torch.no_grad(), tracer:
        output = module(*inputs)
    tensors = output_tensors(output)
    parts = [part for mark in map(tracer.mark, tensors) if mark is not None for part in mark.parts]
    tracer.labels.freeze(parts, "reaches the network's output")
    return [tuple(tensor.shape) for tensor in tensors], parts


def output_shapes(module: nn.Module, inputs: tuple[Any, ...]) -> Shapes:
    """The shapes that `module`, which running may change, returns."""
    with undisturbed(), torch.no_grad():
        return [tuple(tensor.shape) for tensor in output_tensors(module(*inputs))]


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors in whatever a forward returns: nested containers, dataclasses, plain objects."""
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            found.extend(output_tensors(dict(vars(leaf))))
    return found


def _enter(tracer: Tracer, name: str, module: nn.Module, inputs: Any) -> None:
    tracer.modules.append((name, module))
    tracer.entered.append([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)])


def _leave(tracer: Tracer, module: nn.Module, inputs: Any, output: Any) -> None:
    tracer.modules.pop()
    tracer.entered.pop()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Attention as its operations, not one fused call per encoder; global generators kept as they were.

    So every run draws the same, and runs of a forward that goes by chance can be compared.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
