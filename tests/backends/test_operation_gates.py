"""Gates on operations: exact gradients, one operation in memory, and nothing else touched."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backends.mbconv import build
from backends.mixed_operation import mixed_operations
from backends.operation_gates import OperationGates
from backends.operation_space import operation_space
from compsearch.space import BoolArray, FloatArray, IntArray

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 5
CANDIDATES = ("k5_e3", "k3_e3", "k3_e1", "zero")


def gates_of(
    candidates: Sequence[str] = CANDIDATES, *, cells: int = 2, dtype: torch.dtype = torch.float64
) -> OperationGates:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = build(
            num_classes=5,
            stem_channels=8,
            stem_stride=1,
            first_channels=8,
            stages=[{"channels": 8, "cells": cells, "stride": 1}, {"channels": 16, "cells": cells, "stride": 2}],
            head_channels=16,
            candidates=candidates,
            width_multiplier=1.0,
            alike_noise=None,
        )
    space = operation_space(network, torch.zeros(1, 3, 8, 8))
    return OperationGates(model=network.to(dtype).train(), space=space)


def smooth(gates: OperationGates) -> OperationGates:
    """With activations that have a derivative everywhere, norms that do something, and logits that matter."""
    generator = torch.Generator().manual_seed(2)
    for name, module in list(gates.network.named_modules()):
        if isinstance(module, nn.ReLU6):
            gates.network.set_submodule(name, nn.SiLU())
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif isinstance(module, nn.Linear):
            module.weight.data *= 30
    return gates


def look(gates: OperationGates, path: Sequence[int], wanted: BoolArray | None = None) -> FloatArray:
    everything = gates.candidates.is_one if wanted is None else wanted
    dtype = next(gates.network.parameters()).dtype
    logits, gradients = gates.logits_with_gates(IMAGES.to(dtype), np.array(path), everything)
    F.cross_entropy(logits, LABELS).backward()  # type: ignore[no-untyped-call]
    return gradients()


def state(gates: OperationGates) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in gates.network.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def loss_with(gates: OperationGates, values: FloatArray) -> float:
    """The loss where every gate is a number and all operations are computed."""

    def mix(row: FloatArray) -> Callable[[Any, Any, Any], Tensor]:
        return lambda mixed, args, _: sum(
            float(gate) * candidate(*args) for gate, candidate in zip(row, mixed.candidates, strict=False)
        )

    mixed = mixed_operations(gates.network).values()
    handles = [module.register_forward_hook(mix(row)) for module, row in zip(mixed, values, strict=True)]
    with torch.no_grad():
        loss = float(F.cross_entropy(gates.network(IMAGES.double()), LABELS))
    for handle in handles:
        handle.remove()
    return loss


@pytest.mark.parametrize("path", [[0, 1, 2, 3], [3, 3, 0, 1]])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_the_loss_by_finite_differences(path: list[int], training: bool) -> None:
    gates = smooth(gates_of())
    gates.network.train(training)
    found = look(gates, path)
    step = 1e-5
    for choice, candidate in np.argwhere(gates.candidates.is_one):
        values = np.zeros(gates.candidates.values.shape)
        values[np.arange(len(path)), path] = 1.0
        losses = []
        for sign in (1, -1):
            values[choice, candidate] += sign * step
            losses.append(loss_with(gates, values))
            values[choice, candidate] -= sign * step
        assert found[choice, candidate] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-9)
    assert np.abs(found).max() > 1e-3
    assert not found[~gates.candidates.is_one].any()


def test_zero_has_no_gradient_and_does_not_hide_the_others() -> None:
    found = look(gates_of(), [3, 3, 0, 3])
    assert not found[[0, 1, 3], 3].any()
    assert found[[0, 1, 3], 0].all()


def test_what_is_not_wanted_is_neither_computed_nor_given() -> None:
    gates = gates_of()
    wanted = np.zeros_like(gates.candidates.is_one)
    wanted[:, [0, 2]] = True
    calls: list[str] = []
    for name, mixed in mixed_operations(gates.network).items():
        for index, candidate in enumerate(mixed.candidates):
            candidate.register_forward_hook(lambda *_, called=f"{name}.{index}": calls.append(called))
    found = look(gates, [2, 2, 2, 2], wanted)
    assert sorted(calls) == sorted(f"{name}.{index}" for name in mixed_operations(gates.network) for index in (0, 2))
    everything = look(gates, [2, 2, 2, 2])
    assert np.array_equal(found[wanted], everything[wanted])
    assert not found[~wanted].any()
    assert everything[~wanted].any()


def test_logits_are_those_of_the_path_with_and_without_gates() -> None:
    gates = gates_of()
    path = np.array([1, 2, 0, 3])
    expected = gates.logits(IMAGES.double(), path)
    assert torch.equal(gates.logits_with_gates(IMAGES.double(), path, gates.candidates.is_one)[0], expected)
    assert not torch.allclose(gates.logits(IMAGES.double(), np.array([0, 0, 0, 0])), expected)


def test_a_look_at_the_gates_leaves_everything_as_it_was() -> None:
    gates = gates_of()
    frozen = gates.network.get_parameter("stem.conv.weight").requires_grad_(False)
    before = state(gates)
    look(gates, [1, 2, 0, 3])
    assert same(before, state(gates))
    assert all(parameter.grad is None for parameter in gates.network.parameters())
    needing = [parameter for parameter in gates.network.parameters() if parameter.requires_grad]
    assert len(needing) == len(list(gates.network.parameters())) - 1
    assert not frozen.requires_grad
    assert all(mixed.active == 0 and not mixed._forward_hooks for mixed in mixed_operations(gates.network).values())
    norms = [module for module in gates.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.track_running_stats for norm in norms)


def test_a_look_that_fails_leaves_everything_as_it_was() -> None:
    gates = gates_of()
    with pytest.raises(RuntimeError):
        gates.logits_with_gates(IMAGES.double()[:, :2], np.array([1, 1, 1, 1]), gates.candidates.is_one)
    assert all(parameter.requires_grad for parameter in gates.network.parameters())
    assert all(mixed.active == 0 and not mixed._forward_hooks for mixed in mixed_operations(gates.network).values())


def test_weights_of_other_operations_get_no_gradient() -> None:
    gates = gates_of()
    path: IntArray = np.array([0, 1, 2, 3])
    F.cross_entropy(gates.logits(IMAGES.double(), path), LABELS).backward()  # type: ignore[no-untyped-call]
    movable = gates.movable(path)
    with_gradient = {name for name, parameter in gates.network.named_parameters() if parameter.grad is not None}
    assert with_gradient == movable.keys()
    assert set(movable.values()) == {None}
    assert any("candidates.1" in name for name in movable)
    assert not any(name.startswith("stages.0.0.operation.candidates.1") for name in movable)


def test_a_weight_step_moves_the_running_statistics_of_its_path_alone() -> None:
    gates = gates_of()
    before = state(gates)
    gates.logits(IMAGES.double(), np.array([1, 1, 1, 1]))
    moved = {name for name, tensor in state(gates).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any("candidates" in name and "candidates.1" not in name for name in moved)


def test_gradients_in_bfloat16_are_near_those_in_float32() -> None:
    gates = smooth(gates_of(dtype=torch.float32))
    exact = look(gates, [0, 1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, gradients = gates.logits_with_gates(IMAGES, np.array([0, 1, 2, 3]), gates.candidates.is_one)
    F.cross_entropy(logits.float(), LABELS).backward()  # type: ignore[no-untyped-call]
    assert np.corrcoef(gradients().ravel(), exact.ravel())[0, 1] > 0.99


def test_what_does_not_fit_is_refused() -> None:
    gates = gates_of()
    with pytest.raises(ValueError, match=r"`wanted` must be \[4, 4\], but got \[4, 1\]"):
        gates.logits_with_gates(IMAGES, np.zeros(4, dtype=np.int64), np.ones((4, 1), dtype=np.bool_))
    with pytest.raises(AssertionError, match="backward pass comes first"):
        gates.logits_with_gates(IMAGES.double(), np.zeros(4, dtype=np.int64), gates.candidates.is_one)[1]()


# --- Memory --------------------------------------------------------------------------------------------------------


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages made inside and alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and id(storage) not in known and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak_of(run: Callable[[], object]) -> int:
    run()
    gc.collect()
    with LiveMemory() as memory:
        run()
    return memory.peak


def test_the_tracker_sees_what_is_alive_and_what_is_gone() -> None:
    def three_of_which_two_at_once() -> None:
        x = torch.ones(1000)
        x = x + 1
        x.add_(1)
        y = x.view(10, 100)
        del x
        assert y.shape == (10, 100)

    assert peak_of(three_of_which_two_at_once) == 2 * 4000


def test_peak_memory_is_flat_in_the_number_of_candidates() -> None:
    names = [f"k{kernel}_e{expansion}" for expansion in (6, 5, 4, 3, 2) for kernel in (7, 5, 3)]
    peaks: dict[str, list[int]] = {"weights": [], "two": [], "full": [], "at once": []}
    for number in (2, 4, 8, 14):
        gates = gates_of(names[:number], cells=1, dtype=torch.float32)
        path = np.zeros(2, dtype=np.int64)
        two = np.zeros_like(gates.candidates.is_one)
        two[:, :2] = True

        def weights(gates: OperationGates = gates, path: IntArray = path) -> None:
            gates.network.zero_grad()
            F.cross_entropy(gates.logits(IMAGES, path), LABELS).backward()  # type: ignore[no-untyped-call]
            gates.network.zero_grad()

        def at_once(gates: OperationGates = gates) -> None:
            def mix(mixed: Any, args: Any, _: Any) -> Any:
                return sum(candidate(*args) for candidate in mixed.candidates)

            handles = [mixed.register_forward_hook(mix) for mixed in mixed_operations(gates.network).values()]
            F.cross_entropy(gates.network(IMAGES), LABELS).backward()  # type: ignore[no-untyped-call]
            gates.network.zero_grad()
            for handle in handles:
                handle.remove()

        peaks["weights"].append(peak_of(weights))
        peaks["two"].append(peak_of(lambda gates=gates, two=two: look(gates, [0, 0], two)))
        peaks["full"].append(peak_of(lambda gates=gates: look(gates, [0, 0])))
        if number in (2, 14):
            peaks["at once"].append(peak_of(at_once))
    for name in ("weights", "two", "full"):
        assert max(peaks[name]) <= 1.1 * min(peaks[name]), (name, peaks[name])
    # What flatness is measured against: a graph with every candidate in it.
    assert peaks["at once"][-1] > 4 * peaks["at once"][0]
