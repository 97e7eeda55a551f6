"""Running a network on labels without touching it: on shape-only copies where it can, for real where it must."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from backends.label_moves import MOVES
from backends.label_rules import FILLS, RULES, pointwise
from backends.labels import Labels, Tracer
from backends.surgery import named_tensors, plain_tensors, rebuild


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to trace and the input to trace it with; `module` is a copy in eval mode that is run only by copies."""

    module: nn.Module
    inputs: tuple[Any, ...]

    @property
    def batch_size(self) -> int:
        first = next(leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor))
        return int(first.shape[0]) if first.dim() else 1


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


def copied(module: nn.Module) -> nn.Module:
    """A copy to run."""
    return rebuild(module, lambda _, tensor: tensor)


def follower(module: nn.Module, labels: Labels, kept: Mapping[tuple[str, int], Any]) -> Tracer:
    """A tracer of `module`'s parameters and buffers, to which it adds hooks.

    `kept` says which entries of a dimension of a tensor are left of the dense network; a dimension not named is whole.
    """
    tensors = []
    for name, tensor in named_tensors(module):
        axes = (labels.axis(name, dim) for dim in range(tensor.dim()))
        left = [axis[kept[name, dim]] if (name, dim) in kept else axis for dim, axis in enumerate(axes)]
        tensors.append((name, tensor, tuple(map(torch.from_numpy, left))))
    tracer = Tracer(labels, tensors, rules=RULES | MOVES, pointwise=pointwise, fills=FILLS)
    for name, part in module.named_modules():
        part.register_forward_pre_hook(functools.partial(_enter, tracer, name))
        part.register_forward_hook(functools.partial(_leave, tracer))
    return tracer


def follow(tracer: Tracer, module: nn.Module, subject: Subject) -> list[tuple[int, ...]]:
    """Runs `module` on the subject's input under its tracer; labels of the output are frozen, its shapes returned."""
    with _plain_attention(), torch.no_grad(), tracer:
        output = module(*subject.inputs)
    tensors = output_tensors(output)
    for tensor in tensors:
        mark = tracer.mark(tensor)
        if mark is not None:
            tracer.labels.freeze(mark.labels, "reaches the network's output")
    return [tuple(tensor.shape) for tensor in tensors]


def output_shapes(subject: Subject, module: nn.Module) -> list[tuple[int, ...]]:
    """The shapes that `module` (which running may change) returns for the subject's input."""
    with _plain_attention(), torch.no_grad():
        return [tuple(tensor.shape) for tensor in output_tensors(module(*subject.inputs))]


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
def _plain_attention() -> Iterator[None]:
    """Attention as the operations it is made of, rather than one fused call per encoder layer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """A try-out of a forward may warn about sizes that no user chose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
