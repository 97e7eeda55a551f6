"""What a policy does to a network. Exact surgery: fewer channels and blocks, or zeros in their place."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from backends.importance import l1_inputs
from backends.mixed_operation import is_of_operations
from backends.skipping import is_gone, silence, skip, skipped_branches
from compsearch.space import BoolArray, Policy, SearchSpace


class Surgery(Protocol):
    """What a policy does to a network: removes channels, or zeroes weights."""

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError, in one line, when policies of `space` are not what this surgery does."""
        ...

    def __call__(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """The network that `policy` makes of `model`, which is not changed and shares no memory with it."""
        ...

    def structure(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """A network whose state_dict has the result's names and shapes, to load weights into."""
        ...

    def typical(self, model: nn.Module, space: SearchSpace, keep_ratio: float) -> Policy:
        """A policy that keeps about `keep_ratio` of every group; it follows from `model` and `space` alone."""
        ...

    def held(self, network: nn.Module, space: SearchSpace) -> contextlib.AbstractContextManager[None]:
        """Inside, nothing that trains or changes `network`, a result, brings back what was removed."""
        ...


class ChannelSurgery:
    """Extracts the channels and blocks that stay."""

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError unless `space` is one of channels."""
        if space.sparse:
            raise ValueError(
                "surgery=channels removes channels, but the space is one of weights; use surgery=magnitude, or "
                "space=channels"
            )
        _refuse_operations(space)

    def __call__(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """`extract`."""
        return extract(model, space, policy)

    def structure(self, model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
        """`extract`: the sizes are the policy's."""
        return extract(model, space, policy)

    def typical(self, model: nn.Module, space: SearchSpace, keep_ratio: float) -> Policy:
        """The channels that the network reads with the largest weights."""
        counts = [space.nearest_count(index, keep_ratio) for index in range(len(space.groups))]
        return space.select(counts, l1_inputs(model, space).scores())

    def held(self, network: nn.Module, space: SearchSpace) -> contextlib.AbstractContextManager[None]:
        """Nothing to hold: what was removed is not there."""
        return contextlib.nullcontext()


def extract(model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
    """A new module that holds the channels that `policy` keeps of `model`, and computes what they computed.

    Of a block that is skipped, no module of its branch is left (`backends.skipping`).
    `model` is not changed and shares no memory with the result, which keeps its dtype, device, memory format,
    train/eval mode, tied weights and `requires_grad`. Raises ValueError when `policy` does not fit `space`, or `space`
    was not traced from `model`.
    """
    _refuse_operations(space)
    keep = _kept_entries(model, space, policy)
    branches = skipped_branches(space, policy)

    def cut(name: str, tensor: Tensor) -> Tensor:
        for dim, kept in keep.get(name, {}).items():
            if not kept.all():
                tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(kept)).to(tensor.device))
        return tensor

    extracted = rebuild(model, cut)
    for module in extracted.modules():
        _repair(module)
    for site in space.size_sites:
        name, _, attribute = site.parameter.rpartition(".")
        kept = _mask(site.units, space.keep_mask(policy))
        _hold(extracted.get_submodule(name), attribute, site.dim, int(kept.sum()))
    skip(extracted, branches)
    return extracted


def mask(model: nn.Module, space: SearchSpace, policy: Policy) -> nn.Module:
    """A full-size copy of `model` in which every entry that `extract` would drop is zero: the reference for surgery."""
    keep = _kept_entries(model, space, policy)
    branches = skipped_branches(space, policy)

    def zero(name: str, tensor: Tensor) -> Tensor:
        if is_gone(name.rpartition(".")[0], branches):
            return torch.zeros_like(tensor)
        for dim, kept in keep.get(name, {}).items():
            dropped = torch.from_numpy(np.flatnonzero(~kept)).to(tensor.device)
            tensor = tensor.index_fill(dim, dropped, 0)
        return tensor

    masked = rebuild(model, zero)
    # Zero weights alone would leave what activations make of zero.
    silence(masked, branches)
    return masked


def _refuse_operations(space: SearchSpace) -> None:
    if is_of_operations(space):
        raise ValueError(
            f"surgery=channels removes channels, but the space is one of {len(space.blocks)} operations; use "
            "surgery=operations, or space=channels"
        )


def rebuild(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A deep copy of `model` whose parameters and buffers are what `change(name, tensor)` makes of them.

    No tensor is copied in full first: the copies are in place before modules are copied around them.
    """
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            new = change(name, tensor.detach())
            if new.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                new = new.clone()
            elif _is_channels_last(tensor):
                new = new.contiguous(memory_format=torch.channels_last)
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad)
            else:
                memo[id(tensor)] = new.requires_grad_(tensor.requires_grad)
        for tensor in plain_tensors(model):
            # Computed attributes are no leaves, which deepcopy refuses.
            if id(tensor) not in memo and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    for module in model.modules():
        copied = _copied_leaf(module, memo)
        if copied is not None:
            memo[id(module)] = copied
    return copy.deepcopy(model, memo)


#: What every module has. What users add may be shared between modules, which a copy of one doesn't see.
_OWN_NAMES = frozenset(vars(nn.Module()))


def _copied_leaf(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module | None:
    """What deepcopy makes of one of torch's own layers, ten times as fast; None where only deepcopy knows.

    Most of a network's modules are such, and of little else than copying them is surgery on a small network.
    """
    cls = type(module)
    if not cls.__module__.startswith("torch.nn.modules.") or hasattr(cls, "__deepcopy__"):
        return None
    state: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers"):
            state[name] = {key: None if tensor is None else memo[id(tensor)] for key, tensor in value.items()}
        elif name in _OWN_NAMES and type(value) in (dict, OrderedDict, set) and not value:
            state[name] = type(value)()
        elif _is_plain(value):
            state[name] = value
        else:
            return None
    copied = cls.__new__(cls)
    copied.__dict__ = state
    return copied


def _is_plain(value: object) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.dtype, torch.device)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, by its first name; buffers outside the state_dict too."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def plain_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold as ordinary attributes."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _mask(units: Any, keep: BoolArray) -> BoolArray:
    """Which entries stay: those of kept units, and those of none (-1)."""
    padded = np.append(keep, True)
    kept: BoolArray = padded[units]
    return kept


def _kept_entries(model: nn.Module, space: SearchSpace, policy: Policy) -> dict[str, dict[int, BoolArray]]:
    """Which entries stay, by tensor name and dimension."""
    keep = space.keep_mask(policy)
    tensors = dict(named_tensors(model))
    sizes: Mapping[str, int] = {name: parameter.numel() for name, parameter in model.named_parameters()}
    traced = space.parameter_sizes
    for name in {**traced, **sizes}:
        if traced.get(name) != sizes.get(name):
            raise ValueError(
                f"the model must be the one its space was traced from, but parameter {name!r} has "
                f"{sizes.get(name, 'no')} elements here and {traced.get(name, 'no')} there; "
                "trace this model, or extract from the dense one"
            )
    entries: dict[str, dict[int, BoolArray]] = {}
    for site in space.sites:
        tensor = tensors.get(site.parameter)
        if tensor is None or tensor.dim() <= site.dim or tensor.shape[site.dim] != len(site.units):
            shape = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"the model must be the one its space was traced from, but {site.parameter!r} has shape {shape} here, "
                f"not {len(site.units)} entries along dimension {site.dim}"
            )
        entries.setdefault(site.parameter, {})[site.dim] = _mask(site.units, keep)
    return entries


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _repair(module: nn.Module) -> None:
    """Sets the attributes that name sizes to what the module's tensors now are."""
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if isinstance(module, nn.modules.conv._ConvNd) and len(shape) > 2:
        first, second = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
        per_group = getattr(module, first) // module.groups
        module.groups = shape[0] // per_group if module.groups > 1 else 1
        setattr(module, first, shape[0])
        setattr(module, second, shape[1] * module.groups)
    elif isinstance(module, nn.Linear) and len(shape) == 2:
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding) and len(shape) == 2:
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        statistics = weight if weight is not None else module.running_mean
        if statistics is not None:
            module.num_features = len(statistics)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and shape:
        module.normalized_shape = shape
    elif isinstance(module, nn.GroupNorm) and shape:
        _hold(module, "num_channels", 0, shape[0])
    elif isinstance(module, nn.PReLU) and shape:
        module.num_parameters = shape[0]


def _hold(module: nn.Module, attribute: str, index: int, size: int) -> None:
    """Sets a size held in an attribute, and what follows from it; a list is replaced, as others may hold it too."""
    value = getattr(module, attribute)
    if isinstance(value, list | tuple):
        several = (*value[:index], size, *value[index + 1 :])
        setattr(module, attribute, list(several) if isinstance(value, list) else several)
        return
    if isinstance(module, nn.GroupNorm) and attribute == "num_channels" and module.num_groups > 1:
        # Whole norm groups go, each as wide as before.
        module.num_groups = size // (module.num_channels // module.num_groups)
    setattr(module, attribute, size)
