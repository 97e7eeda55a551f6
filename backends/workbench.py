"""From a policy to a finished network: cut, recover, fine-tune, measure, save and load."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.data import Splits
from backends.device_fingerprint import machine
from backends.latency import LatencyMeter
from backends.mixed_operation import is_of_operations
from backends.recovery import Recovery
from backends.surgery import Surgery
from backends.training import Recipe, ScratchRecipe, forget, measure, train
from compsearch.space import Policy, SearchSpace
from compsearch.summary import Latency
from compsearch.trial import Measurement


class NetworkWorkbench:
    """Finishes networks that `surgery` makes of `model` by policies of `space`.

    `recovery` is applied to every compressed network, `recipe` is how finalists are fine-tuned, with `model` as the
    teacher where the recipe distils, `latency` how networks are timed. `model` is never changed.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        space: SearchSpace,
        surgery: Surgery,
        splits: Splits,
        recovery: Recovery,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        example_input: Tensor,
        batch_size: int,
        latency: LatencyMeter,
    ) -> None:
        self.model = model
        self.space = space
        self.surgery = surgery
        self.splits = splits
        self.recovery = recovery
        self.recipe = recipe
        self.device = device
        self.seed = seed
        self.example_input = example_input
        self.batch_size = batch_size
        self.latency = latency

    @property
    def machine(self) -> str:
        """What it all runs on."""
        return machine(self.device)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its networks' accuracies must know, a sentence each."""
        if not isinstance(self.recipe, ScratchRecipe):
            return ()
        shared = "dense, compressed and uniform have the weights that all paths of the supernet share; "
        return (f"{shared if is_of_operations(self.space) else ''}fine-tuned was trained from scratch",)

    def dense(self) -> nn.Module:
        """The network as given; of one with several operations in each place, the network of the dearest ones."""
        return self._dearest if is_of_operations(self.space) else self.model

    @functools.cached_property
    def _dearest(self) -> nn.Module:
        # Not before the search is over: it trains the weights that are taken from here.
        return self.compress(self.space.full_policy())

    def compress(self, policy: Policy) -> nn.Module:
        """The network of `policy`, cut and recovered."""
        network = self.plain(policy)
        with self.surgery.held(network, self.space):
            self.recovery(network, policy)
        return network

    def finetune(self, network: nn.Module, checkpoint: Path) -> nn.Module:
        """A copy of `network` trained by the recipe, going on from `checkpoint` where there is one.

        What surgery removed stays removed. A recipe from scratch keeps the network's shape and none of its weights,
        and draws new ones from the seed; it is given no teacher.
        """
        tuned = copy.deepcopy(network)
        if isinstance(self.recipe, ScratchRecipe):
            with self.surgery.held(tuned, self.space):  # zeroed weights are zero again on leaving
                forget(tuned.cpu(), self.seed)  # where draws are the same whatever the device training is on
        tuned.to(self.device)
        teacher = self.dense() if self.recipe.distill_weight else None
        with self.surgery.held(tuned, self.space):
            train(
                tuned,
                self.splits.train,
                self.recipe,
                device=self.device,
                seed=self.seed,
                teacher=teacher,
                checkpoint=checkpoint,
                progress="fine-tuning",
            )
        return tuned

    def measure(self, network: nn.Module, split: str) -> Measurement:
        """Accuracy of `network` in float32 on the split of that name."""
        images = {"search": self.splits.search, "test": self.splits.test}[split]
        return measure(network, images, device=self.device, batch_size=self.batch_size)

    def latencies(self, networks: Mapping[str, nn.Module]) -> dict[str, Latency]:
        """Time of a batch through each network, in turns so that the machine's drift cancels; ratios to the first."""
        return self.latency.measure(networks, self.example_input)

    def energies(self, networks: Mapping[str, nn.Module]) -> dict[str, str]:
        """What a batch through each network draws, measured; in words. Empty where the machine has no counter."""
        readings = self.latency.energies(networks, self.example_input)
        return {name: str(reading) for name, reading in readings.items()}

    def plain(self, policy: Policy) -> nn.Module:
        """The network of `policy` as cut, neither recovered nor trained: as fast as any other of that policy."""
        return self.surgery(self.model, self.space, policy)

    def state(self, network: nn.Module) -> dict[str, Any]:
        """The state_dict on the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}

    def load(self, policy: Policy, state: Mapping[str, Any]) -> nn.Module:
        """The network of `policy` with the weights of `state`."""
        return load_network(model=self.model, space=self.space, surgery=self.surgery, policy=policy, state=state)


def load_network(
    *, model: nn.Module, space: SearchSpace, surgery: Surgery, policy: Policy, state: Mapping[str, Any]
) -> nn.Module:
    """The network that `policy` leaves of `model`, which is not changed, with the weights of `state`."""
    network = surgery.structure(model, space, policy)
    network.load_state_dict(dict(state))
    return network
