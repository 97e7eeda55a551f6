import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from backends import training, weights
from backends.cifar_resnet import CifarResNet
from backends.data import TensorSplit
from backends.seeding import isolated_rng
from backends.training import Recipe
from backends.weights import load_weights, trained_weights

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=2,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=8,
    warmup_epochs=1,
    label_smoothing=0.1,
    nesterov=True,
    distill_weight=0.0,
    distill_temperature=4.0,
    precision="auto",
)


def make_network(seed: int = 0, depth: int = 8, num_classes: int = 4) -> CifarResNet:
    with isolated_rng(seed):
        return CifarResNet(depth, num_classes)


def make_split(seed: int = 0) -> TensorSplit:
    rng = torch.Generator().manual_seed(seed)
    return TensorSplit(
        name="train",
        images=torch.randn(24, 3, 8, 8, generator=rng),
        labels=torch.arange(24) % 4,
        normalisation=None,
        augmentation=None,
    )


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class TestLoadWeights:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {"model": state},
            lambda state: {f"module.{key}": value for key, value in state.items()},
            lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        ],
    )
    def test_every_usual_form_of_a_state_dict_loads(self, tmp_path, wrap):
        torch.save(wrap(make_network(seed=1).state_dict()), tmp_path / "w.pt")
        network = make_network()
        load_weights(network, tmp_path / "w.pt")
        assert equal(network, make_network(seed=1))

    def test_old_files_without_batch_counters_load(self, tmp_path):
        state = {k: v for k, v in make_network(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
        torch.save(state, tmp_path / "w.pt")
        network = make_network()
        load_weights(network, tmp_path / "w.pt")
        assert torch.equal(network.conv1.weight, make_network(seed=1).conv1.weight)

    def test_missing_unexpected_and_misshapen_keys_are_counted_and_listed_and_nothing_is_loaded(self, tmp_path):
        state = make_network(seed=1, num_classes=7).state_dict()
        for key in ("conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"):
            state[f"net.{key}"] = state.pop(key)
        torch.save(state, tmp_path / "w.pt")
        network = make_network()
        with pytest.raises(ValueError, match="weights must belong to this network") as error:
            load_weights(network, tmp_path / "w.pt")
        message = str(error.value)
        assert "4 missing (conv1.weight, bn1.weight, bn1.bias, …)" in message
        assert "4 unexpected (net.conv1.weight, net.bn1.weight, net.bn1.bias, …)" in message
        assert "2 misshapen (linear.weight (7, 64) for (4, 64), linear.bias (7,) for (4,))" in message
        assert "\n" not in message
        assert equal(network, make_network())

    @pytest.mark.parametrize("value", [[1, 2], {}, {"epoch": 3}, {"model": {"a": 1}}])
    def test_a_file_without_a_state_dict_is_one_line(self, tmp_path, value):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"must hold a state_dict, .*w\.pt' does not") as error:
            load_weights(make_network(), tmp_path / "w.pt")
        assert "\n" not in str(error.value)

    def test_a_whole_model_is_refused_with_the_way_out(self, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"save model\.state_dict\(\), not the model"):
            load_weights(make_network(), tmp_path / "w.pt")

    def test_a_missing_file_is_one_line(self, tmp_path):
        with pytest.raises(ValueError, match="must exist"):
            load_weights(make_network(), tmp_path / "none.pt")

    @pytest.mark.parametrize("depth", [20, 56])
    def test_public_cifar_weights_load(self, depth):
        path = Path(__file__).parents[3] / "shared" / "weights" / f"resnet{depth}-cifar10.pt"
        if not path.exists():
            pytest.skip(f"needs public weights: {path} is absent")
        network = make_network(depth=depth, num_classes=10)
        load_weights(network, path)
        assert not torch.equal(network.bn1.running_mean, torch.zeros(16))


class TestTrainedWeights:
    def run(self, folder, network=None, **changes):
        options = {"split": make_split(), "recipe": RECIPE, "description": {"depth": 8, "seed": 0}, "seed": 0}
        options |= changes
        network = network if network is not None else make_network()
        return network, trained_weights(
            network,
            options["split"],
            options["recipe"],
            name="resnet8 on noise",
            description=options["description"],
            device=CPU,
            seed=options["seed"],
            cache_dir=folder,
        )

    def test_a_second_call_loads_and_does_not_train(self, tmp_path, monkeypatch):
        network, path = self.run(tmp_path)
        assert not equal(network, make_network())
        monkeypatch.setattr(weights, "train", lambda *args, **kwargs: pytest.fail("trained again"))
        again, same_path = self.run(tmp_path, network=make_network())
        assert equal(again, network)
        assert path == same_path
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_the_cached_file_loads_like_any_weights(self, tmp_path):
        network, path = self.run(tmp_path)
        other = make_network(seed=9)
        load_weights(other, path)
        assert equal(other, network)

    @pytest.mark.parametrize(
        "change",
        [
            {"split": make_split(1)},
            {"recipe": dataclasses.replace(RECIPE, lr=0.01)},
            {"description": {"depth": 8, "seed": 1}},
            {"seed": 1},
            {"network": make_network(num_classes=5)},
        ],
    )
    def test_whatever_determines_the_weights_determines_the_file(self, tmp_path, change, monkeypatch):
        monkeypatch.setattr(weights, "train", lambda *args, **kwargs: None)
        assert self.run(tmp_path)[1] != self.run(tmp_path, **change)[1]

    def test_an_interrupted_training_resumes_and_equals_an_uninterrupted_one(self, tmp_path, monkeypatch):
        monkeypatch.setattr(training, "_CHECKPOINT_INTERVAL_S", 0)
        whole, _ = self.run(tmp_path / "whole")
        split = make_split()
        batches = split.training_batches
        epochs = []

        def interrupted(batch_size, generator):
            epochs.append(len(epochs))
            if len(epochs) == 2:
                raise KeyboardInterrupt
            return batches(batch_size, generator)

        split.training_batches = interrupted
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "cut", split=split)
        assert [path.name.endswith(".partial.pt") for path in (tmp_path / "cut").iterdir()] == [True]
        resumed, path = self.run(tmp_path / "cut", split=split)
        assert len(epochs) == 3  # one whole, one cut, and the one that was missing
        assert equal(resumed, whole)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
