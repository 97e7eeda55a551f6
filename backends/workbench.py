"""From a policy to a finished network: extract, recover, fine-tune, measure, save and load."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.data import Splits
from backends.latency import measure_latency
from backends.recovery import Recovery
from backends.surgery import extract
from backends.training import Recipe, measure, train
from compsearch.space import Policy, SearchSpace
from compsearch.trial import Measurement


class NetworkWorkbench:
    """Finishes networks made of `model` by policies of `space`.

    `recovery` is applied to every compressed network, `recipe` is how finalists are fine-tuned, with `model` as the
    teacher where the recipe distils. `model` is never changed.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        space: SearchSpace,
        splits: Splits,
        recovery: Recovery,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        example_input: Tensor,
        batch_size: int,
        latency_repetitions: int,
        latency_warmup: int,
        latency_time_budget_s: float,
        latency_threads: int,
    ) -> None:
        self.model = model
        self.space = space
        self.splits = splits
        self.recovery = recovery
        self.recipe = recipe
        self.device = device
        self.seed = seed
        self.example_input = example_input
        self.batch_size = batch_size
        self.latency_repetitions = latency_repetitions
        self.latency_warmup = latency_warmup
        self.latency_time_budget_s = latency_time_budget_s
        self.latency_threads = latency_threads

    def dense(self) -> nn.Module:
        """The network as given."""
        return self.model

    def compress(self, policy: Policy) -> nn.Module:
        """The network of `policy`, extracted and recovered."""
        network = extract(self.model, self.space, policy)
        self.recovery(network, policy)
        return network

    def finetune(self, network: nn.Module, checkpoint: Path) -> nn.Module:
        """A copy of `network` trained by the recipe, going on from `checkpoint` where there is one."""
        tuned = copy.deepcopy(network)
        teacher = self.model if self.recipe.distill_weight else None
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

    def latency_ms(self, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
        """Time of one image through each network on the CPU, in turns so that the machine's drift cancels."""
        latencies = measure_latency(
            {name: copy.deepcopy(network).cpu() for name, network in networks.items()},
            self.example_input[:1].cpu(),
            repetitions=self.latency_repetitions,
            warmup=self.latency_warmup,
            time_budget_s=self.latency_time_budget_s,
            threads=self.latency_threads,
        )
        return {
            name: {
                "median_ms": latency.median_ms,
                "p10_ms": latency.p10_ms,
                "p90_ms": latency.p90_ms,
                "runtime": f"PyTorch eager on the CPU, float32, batch 1, {self.latency_threads} thread(s)",
            }
            for name, latency in latencies.items()
        }

    def state(self, network: nn.Module) -> dict[str, Any]:
        """The state_dict on the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}

    def load(self, policy: Policy, state: Mapping[str, Any]) -> nn.Module:
        """The network of `policy` with the weights of `state`."""
        return load_network(model=self.model, space=self.space, policy=policy, state=state)


def load_network(*, model: nn.Module, space: SearchSpace, policy: Policy, state: Mapping[str, Any]) -> nn.Module:
    """The network that `policy` leaves of `model`, which is not changed, with the weights of `state`."""
    network = extract(model, space, policy)
    network.load_state_dict(dict(state))
    return network
