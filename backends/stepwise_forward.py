"""A network run one step at a time, on several batches at once, so that its layers may change in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from backends.fast_inference import call_runner, layer_runner
from backends.fusion import CallStep, LayerStep, Plan
from backends.workers import Workers


class StepwiseForward:
    """A network run on several batches at once, one step at a time; `values` are each batch's slots."""

    def __init__(self, network: nn.Module, plan: Plan, batches: Sequence[Tensor], workers: Workers) -> None:
        self.values: list[list[Any]] = [[batch, *[None] * (plan.num_slots - 1)] for batch in batches]
        self._network = network
        self._workers = workers
        self._dtype = batches[0].dtype

    def advance(self, step: LayerStep | CallStep, unread: Sequence[int]) -> None:
        """Computes `step` with the weights of now, and forgets the slots `unread`."""
        runner = layer_runner if isinstance(step, LayerStep) else call_runner
        run = runner(self._network, step, dtype=self._dtype)  # type: ignore[arg-type]

        def one(values: list[Any]) -> None:
            values[step.output] = run(values)
            for slot in unread:
                values[slot] = None

        self._workers.map(one, self.values)
