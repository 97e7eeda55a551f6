import re
from pathlib import Path

import pytest
import torch
from torch import nn

import compsearch

ROOT = Path(__file__).resolve().parents[2]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Dictionary(Small):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": super().forward(x)}


class Sized(Small):
    def __len__(self) -> int:
        return 0


def images(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 3
    shift = labels[:, None, None, None].float() - 1
    return torch.randn(num_images, 1, 8, 8, generator=generator) + shift, labels


OPTIONS = ["finetune.epochs=1", "latency.repetitions=3", "searcher.num_steps=3", "space.divisor=1"]


def test_a_module_and_tensors_give_a_smaller_module_within_budget() -> None:
    torch.manual_seed(0)
    model = Small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compsearch.compress(
        model, train=images(120, 0), test=images(30, 1), searcher="random", budget=0.5, overrides=OPTIONS
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert sum(p.numel() for p in result.module.parameters()) < sum(p.numel() for p in model.parameters())
    assert result.module(images(2, 2)[0]).shape == (2, 3)
    assert len(result.trials) == 3
    assert (result.trials["cost_ratio"] <= 0.5).all()
    rows = {name: result.summary.network(name) for name in ("compressed", "fine-tuned")}
    for row, network in zip(rows.values(), (result.recovered, result.module), strict=True):
        assert network.training
        x, labels = images(30, 1)
        accuracy = (network.eval()(x).argmax(1) == labels).float().mean()
        assert row is not None
        assert row.accuracy_test == pytest.approx(float(accuracy))


def test_a_network_of_no_length_comes_back_in_the_mode_it_was_given_in() -> None:
    torch.manual_seed(0)
    given = {"train": images(120, 0), "test": images(30, 1), "searcher": "uniform"}
    options = ["finetune.epochs=0", "latency.repetitions=3", "space.divisor=1"]
    assert compsearch.compress(Sized().train(), overrides=options, **given).module.training


def test_a_kept_folder_is_not_searched_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    given = {"train": images(120, 0), "test": images(30, 1), "searcher": "random", "folder": tmp_path / "run"}
    first = compsearch.compress(model, overrides=OPTIONS, **given)
    again = compsearch.compress(model, overrides=OPTIONS, **given)
    assert first.policy == again.policy
    assert first.summary == again.summary
    x = images(4, 3)[0]
    assert torch.equal(first.module(x), again.module(x))
    assert torch.equal(first.recovered(x), again.recovered(x))
    (tmp_path / "run" / "recovered.pt").unlink()
    assert compsearch.compress(model, overrides=OPTIONS, **given).recovered is None


def test_datasets_and_loaders_do_as_well_as_tensors() -> None:
    torch.manual_seed(0)
    model = Small().eval()
    dataset = torch.utils.data.TensorDataset(*images(120, 0))
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    options = [*OPTIONS, "finetune.epochs=0"]
    policies = [
        compsearch.compress(model, train=train, test=images(30, 1), searcher="random", overrides=options).policy
        for train in (dataset, loader, list(dataset))
    ]
    assert policies[0] == policies[1] == policies[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0.0}, "0 < budget.cost_ratio <= 1"),
        ({"searcher": "nothing"}, "searcher/nothing"),
        ({"train": iter([])}, "`train` must be a dataset"),
        ({"train": (torch.zeros(4, 1, 8, 8), torch.zeros(4))}, "one integer label per image"),
        ({"train": (images(40, 0)[0], images(39, 0)[1])}, "one integer label per image"),
        ({"train": (images(40, 0)[0], torch.arange(40) % 7)}, "number of the network's outputs, 3, but `train` has 6"),
        ({"test": (images(40, 0)[0], torch.arange(40) % 3 - 1)}, "labels must count from 0, but `test` has -1"),
        ({"train": (images(40, 0)[0].to(torch.uint8), images(40, 0)[1])}, "but `train` gives torch.uint8"),
        ({"model": Dictionary()}, "`model` must return logits [B, num_classes], but returned a dict"),
        ({"model": Small().eval().forward}, "`model` must be a torch.nn.Module"),
        ({"budget": None}, "`budget` must be a number or a list of numbers, each a cost_ratio, but got None"),
        ({"budget": "0.5"}, "`budget` must be a number or a list of numbers, each a cost_ratio, but got '0.5'"),
        ({"budget": [0.5, None]}, "each a cost_ratio, but got [0.5, None]"),
        ({"budget": []}, "`budget.cost_ratios` must be distinct and at least one"),
        ({"overrides": "finetune.epochs=1"}, "`overrides` must be a list of strings"),
        ({"overrides": [1]}, "`overrides` must be a list of strings"),
        ({"overrides": None}, "`overrides` must be a list of strings"),
    ],
)
def test_bad_arguments_are_one_line(changes: dict[str, object], message: str) -> None:
    given = {"train": images(120, 0), "test": images(30, 1), "searcher": "random", "overrides": OPTIONS}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        compsearch.compress(**{"model": Small().eval(), **given, **changes})
    assert "\n" not in str(caught.value)


def test_the_readmes_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    [example] = [block for block in blocks if "compsearch.compress(" in block]
    assert len(example.strip().splitlines()) <= 12
    torch.manual_seed(0)
    scope = {"model": Small().eval(), "train_set": images(120, 0), "test_set": images(30, 1)}
    exec(example, scope)


def test_several_budgets_give_a_family() -> None:
    torch.manual_seed(0)
    model = Small().eval()
    options = ["finetune.epochs=0", "latency.repetitions=3", "space.divisor=1"]
    given = {"train": images(120, 0), "test": images(30, 1), "searcher": "global_magnitude", "overrides": options}
    result = compsearch.compress(model, budget=[0.8, 0.5], **given)
    assert list(result.family) == [0.8, 0.5]
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in result.family.values()]
    assert sizes[0] > sizes[1] == sum(parameter.numel() for parameter in result.module.parameters())
    assert [member.cost_ratio for member in result.summary.family] == [0.8, 0.5]
