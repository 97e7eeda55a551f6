import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from backends import training
from backends.augmentation import ShiftFlip
from backends.data import Normalisation, TensorSplit
from backends.precision import resolve_precision, training_precision
from backends.seeding import isolated_rng
from backends.training import Recipe, measure, resolve_device, train, training_loss

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=4,
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=8,
    warmup_epochs=1,
    label_smoothing=0.1,
    nesterov=True,
    distill_weight=0.0,
    distill_temperature=4.0,
    precision="float32",
)


def make_split(num_images: int = 45, num_classes: int = 6) -> TensorSplit:
    """Classes differ in brightness."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(num_images) % num_classes
    images = torch.randint(40, (num_images, 3, 8, 8), generator=rng) + 40 * labels[:, None, None, None]
    return TensorSplit(
        name="train",
        images=images.to(torch.uint8),
        labels=labels,
        normalisation=Normalisation.of("imagenet"),
        augmentation=ShiftFlip(padding=1, flip=True),
    )


def make_network(seed: int = 0, num_classes: int = 6) -> nn.Module:
    with isolated_rng(seed):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, num_classes),
        )


def trained(recipe=RECIPE, **options):
    network = make_network()
    train(network, make_split(), recipe, device=CPU, seed=0, **options)
    return network


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_learns():
    network = trained(dataclasses.replace(RECIPE, epochs=40))
    before = measure(make_network(), make_split(), device=CPU, batch_size=16)
    after = measure(network, make_split(), device=CPU, batch_size=16)
    assert before.accuracy < 0.5 < 0.8 < after.accuracy
    assert after.loss < before.loss


def test_training_follows_from_its_seed_and_leaves_the_global_generator_alone():
    first = trained()
    torch.rand(7)
    before = torch.get_rng_state()
    assert equal(first, trained())
    assert torch.equal(torch.get_rng_state(), before)
    other = make_network()
    train(other, make_split(), RECIPE, device=CPU, seed=1)
    assert not equal(first, other)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_CHECKPOINT_INTERVAL_S", 0)
    path = tmp_path / "training.pt"
    whole = trained(checkpoint=tmp_path / "whole.pt")

    def interrupt_after_two(state, path, *, save=training.save_atomically):
        save(state, path)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_atomically", interrupt_after_two)
        with pytest.raises(KeyboardInterrupt):
            trained(checkpoint=path)
    halfway = torch.load(path, weights_only=True)
    resumed = trained(checkpoint=path)
    assert equal(resumed, whole)
    # The negative control: the same epochs from the same weights, with any one part of the state lost, differ.
    for part in ("optimizer", "generator", "global_rng"):
        fresh = torch.load(tmp_path / "whole.pt", weights_only=True)
        torch.save({**halfway, part: fresh[part]}, path)
        assert not equal(trained(checkpoint=path), whole), part


def test_a_finished_training_is_not_repeated(tmp_path):
    path = tmp_path / "training.pt"
    whole = trained(checkpoint=path)
    again = make_network(seed=5)
    split = make_split()
    split.training_batches = lambda *args: pytest.fail("trained again")
    train(again, split, RECIPE, device=CPU, seed=0, checkpoint=path)
    assert equal(again, whole)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "training.pt"
    trained(checkpoint=path)
    with pytest.raises(ValueError, match=r"training\.pt differs in lr; remove it to train anew"):
        trained(dataclasses.replace(RECIPE, lr=0.01), checkpoint=path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = tmp_path / "training.pt"
    trained(checkpoint=path)
    with pytest.raises(ValueError, match=r"training\.pt differs in network"):
        train(make_network(num_classes=7), make_split(), RECIPE, device=CPU, seed=0, checkpoint=path)


class Viewing(nn.Module):
    """Fails on channels-last images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 6 * 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return self.linear(out.view(len(x), -1))


def test_a_network_that_cannot_run_channels_last_trains_all_the_same():
    network = Viewing()
    with pytest.raises(RuntimeError, match="view"):
        network(torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last))
    before = network.linear.weight.detach().clone()
    train(network, make_split(), RECIPE, device=CPU, seed=0)
    assert not torch.equal(network.linear.weight, before)


@pytest.mark.parametrize("mode", [True, False])
def test_modes_device_and_memory_format_are_as_before(mode):
    network = make_network().train(mode)
    network[1].eval()
    train(network, make_split(), dataclasses.replace(RECIPE, epochs=1), device=CPU, seed=0)
    assert network.training is mode
    assert not network[1].training
    assert network[0].weight.is_contiguous()


def test_no_epochs_change_nothing():
    assert equal(trained(dataclasses.replace(RECIPE, epochs=0)), make_network())


def test_the_learning_rate_warms_up_linearly_then_falls_to_zero_by_the_cosine(monkeypatch):
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr(training.torch.optim, "SGD", Spy)
    trained(dataclasses.replace(RECIPE, warmup_epochs=1.5))  # 6 steps an epoch: 45 images in batches of 8
    assert len(rates) == 24
    assert all(first == second for first, second in rates)
    lr = [first for first, _ in rates]
    assert lr[:9] == pytest.approx([0.05 * step / 9 for step in range(1, 10)])
    assert lr[9:] == pytest.approx([0.025 * (1 + math.cos(math.pi * step / 15)) for step in range(15)])
    assert 0 < lr[-1] < 0.001


def test_weight_decay_spares_biases_and_norms():
    network = make_network()
    optimizer = training._optimizer(network, RECIPE)
    decayed, spared = ({id(parameter) for parameter in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]
    assert decayed == {id(network[0].weight), id(network[6].weight)}
    assert spared == {id(p) for p in network.parameters()} - decayed


def test_one_step_is_nesterov_sgd_by_hand():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 2), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(1, 2, 3))[:, None] * self.weight

    split = TensorSplit(
        name="train", images=torch.ones(2, 3, 2, 2), labels=torch.zeros(2), normalisation=None, augmentation=None
    )
    network = Scale()
    recipe = dataclasses.replace(RECIPE, epochs=1, lr=0.1, warmup_epochs=0, label_smoothing=0.0, batch_size=2)
    train(network, split, recipe, device=CPU, seed=0)
    gradient = torch.tensor([[-0.5, 0.5]]) + 5e-4 * 0.5  # softmax minus one-hot, plus decay
    torch.testing.assert_close(network.weight.detach(), 0.5 - 0.1 * (gradient + 0.9 * gradient))


def test_the_distillation_term_has_a_known_value():
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.0, distill_weight=0.25, distill_temperature=2.0)
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At T=2 the teacher says (3/4, 1/4) and the student (1/2, 1/2).
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = 0.75 * math.log(2) + 0.25 * 4 * divergence
    loss = training_loss(student, torch.tensor([1]), teacher, recipe)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_has_a_known_value():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss = training_loss(logits, torch.tensor([0]), None, dataclasses.replace(RECIPE, label_smoothing=0.2))
    assert loss.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), rel=1e-6)


def test_the_teacher_matters_and_is_unchanged():
    recipe = dataclasses.replace(RECIPE, distill_weight=0.5)
    teacher = make_network(seed=3).train()
    before = copy.deepcopy(teacher)
    distilled = trained(recipe, teacher=teacher)
    assert equal(teacher, before)
    assert teacher.training
    assert not equal(distilled, trained(recipe, teacher=make_network(seed=4)))
    assert equal(trained(teacher=teacher), trained())  # a weight of 0 leaves it out


def test_distilling_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="must be given a teacher"):
        trained(dataclasses.replace(RECIPE, distill_weight=0.5))


def test_a_loss_that_is_not_finite_says_where_and_what_to_do():
    split = make_split()
    split.augmentation = None
    split.normalisation = Normalisation((0.0,) * 3, (1.0,) * 3)
    batches = split.training_batches

    def poisoned(batch_size, generator):
        for index, (images, labels) in enumerate(batches(batch_size, generator)):
            yield images * (math.nan if index == 3 else 1), labels

    split.training_batches = poisoned
    with pytest.raises(ValueError, match=r"got nan in epoch 1, step 4, with lr=0\.05; lower lr") as error:
        train(make_network(), split, RECIPE, device=CPU, seed=0)
    assert "\n" not in str(error.value)


def test_bfloat16_trains_float32_weights():
    network = trained(dataclasses.replace(RECIPE, precision="bfloat16"))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    assert not equal(network, trained())
    for value, reference in zip(network.parameters(), trained().parameters(), strict=True):
        torch.testing.assert_close(value, reference, atol=0.05, rtol=0.2)


def test_progress_says_what_it_was_told(capsys, monkeypatch):
    said = []

    class Bar(training.tqdm):
        def __init__(self, **options):
            said.append((options["desc"], options["total"], options["disable"]))
            super().__init__(**{**options, "disable": True})

    monkeypatch.setattr(training, "tqdm", Bar)
    trained(progress="fine-tuning")
    assert said == [("fine-tuning", 24, None)]
    trained()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("momentum", 0.0),
        ("weight_decay", -1e-4),
        ("batch_size", 1),
        ("warmup_epochs", -1),
        ("label_smoothing", 1.0),
        ("distill_weight", 1.5),
        ("distill_temperature", 0.0),
        ("precision", "float16"),
    ],
)
def test_an_impossible_recipe_names_the_field_and_the_value(field, value):
    with pytest.raises(ValueError, match=f"`.*{field} .*` must hold for a recipe, but got {field}={value!r}"):
        dataclasses.replace(RECIPE, **{field: value})


class Fixed(nn.Module):
    """Gives the logits it was made with, a row per image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        rows = self.logits[self.seen : self.seen + len(x)]
        self.seen += len(x)
        return rows


def ready_split(labels: list[int]) -> TensorSplit:
    images = torch.zeros(len(labels), 3, 2, 2)
    return TensorSplit(name="search", images=images, labels=torch.tensor(labels), normalisation=None, augmentation=None)


def test_a_measurement_by_hand():
    logits = torch.arange(8.0).flip(0).repeat(4, 1)  # class 0 first, 7 last
    measurement = measure(Fixed(logits), ready_split([0, 0, 4, 5]), device=CPU, batch_size=3)
    assert (measurement.split, measurement.num_images) == ("search", 4)
    assert (measurement.accuracy, measurement.top5) == (0.5, 0.75)
    normaliser = math.log(sum(math.exp(value) for value in range(8)))
    assert measurement.loss == pytest.approx(normaliser - (7 + 7 + 3 + 2) / 4, rel=1e-6)
    assert measurement.is_finite


def test_top5_of_fewer_than_five_classes_is_one():
    assert measure(Fixed(torch.rand(4, 3)), ready_split([0, 1, 2, 0]), device=CPU, batch_size=4).top5 == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_nan(bad):
    logits = torch.zeros(4, 6)
    logits[1, 2] = bad
    measurement = measure(Fixed(logits), ready_split([0, 1, 2, 0]), device=CPU, batch_size=3)
    assert math.isnan(measurement.accuracy)
    assert math.isnan(measurement.loss)
    assert not measurement.is_finite


def test_measuring_changes_neither_mode_nor_statistics():
    network = make_network().train()
    before = copy.deepcopy(network)
    measure(network, make_split(), device=CPU, batch_size=16)
    assert network.training
    assert equal(network, before)


def test_devices_resolve(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"got 'cuda' and there are 0 CUDA devices; use device=cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="got 'cuda:2' and there are 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "", "meta", "cuda:x"])
def test_an_unknown_device_is_one_line(device):
    with pytest.raises(ValueError, match=r"must be auto, cpu, cuda or cuda:<index>, but got") as error:
        resolve_device(device)
    assert "\n" not in str(error.value)


def test_precision_is_what_was_asked_for_or_what_the_device_has():
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert resolve_precision("auto", CPU) in ("float32", "bfloat16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_follows_from_its_seed_and_leaves_both_global_generators_alone():
    device = resolve_device("cuda")
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device)
    networks = [make_network(), make_network()]
    for network in networks:
        train(network, make_split(), RECIPE, device=device, seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(device), before[1])
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(first, second)


def test_networks_with_depthwise_convolutions_train_in_float32_on_the_cpu() -> None:
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2))
    native = resolve_precision("auto", CPU)
    assert training_precision("auto", depthwise, CPU) == "float32"
    assert training_precision("auto", grouped, CPU) == native
    assert training_precision("auto", make_network(), CPU) == native
    assert training_precision("bfloat16", depthwise, CPU) == "bfloat16"
