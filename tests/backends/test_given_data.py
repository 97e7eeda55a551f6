import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from backends.data import Splits
from backends.given_data import network_of, splits_of


def pair(num_images: int = 60, num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, 1, 4, 4, generator=generator), torch.arange(num_images) % num_classes


def splits(train: Any, **changes: Any) -> Splits:
    given = {"test": pair(), "search": None, "search_images": 10, "max_search_share": 0.2, "seed": 0}
    return splits_of(train=train, **{**given, **changes})


def fingerprint(dataset: Any) -> str:
    return splits(dataset).train.fingerprint


def network(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


class Drawn(Dataset[Any]):
    """Images brighter by what `draw` gives; items that were read are counted."""

    def __init__(self, images: torch.Tensor, draw: Callable[[], float] = float, num_images: int = 60) -> None:
        self.images = images
        self.draw = draw
        self.targets = (torch.arange(num_images) % 3).tolist()
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.num_read += 1
        return self.images[index % len(self.images)] + self.draw(), self.targets[index]


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter([])


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = network()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.inside(x)}


def test_a_list_of_pairs_and_arrays_are_as_good_as_tensors() -> None:
    images, labels = pair()
    expected = next(iter(splits((images, labels)).train.batches(48)))
    pairs = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    arrays = (images.numpy(), labels.numpy())
    for given in (pairs, pairs[:2] + pairs[2:], arrays, (images, labels.tolist()), TensorDataset(images, labels)):
        found = next(iter(splits(given).train.batches(48)))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert splits(pairs, search=pairs[:2]).search.num_images == 2


def test_labels_are_those_after_the_target_transform() -> None:
    dataset = Drawn(pair()[0])
    dataset.target_transform = lambda label: 2 - label  # type: ignore[attr-defined]
    test = splits(pair(), test=dataset).test
    assert test.labels[:4].tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((pair()[0], pair(59)[1]), "one integer label per image, but has labels of torch.int64 and shape (59,) for 60"),
        ((pair()[0], pair()[1] - 1), "labels must count from 0, but `train` has -1"),
        ((pair()[0], ["a"] * 60), "one integer label per image, but has list (too many dimensions 'str')"),
        ((pair()[0], pair()[1] / 2), "one integer label per image, but has labels of torch.float32"),
        ([(pair()[0][0], 0.5)] * 4, "one integer label per image, but has labels of torch.float32"),
        ((pair()[0],), "`train` must be (images, labels), but got 1 tensors"),
        (TensorDataset(pair()[0]), "`train` must give (image, label) by index, but gives a tuple of 1"),
        ({"images": pair()[0], "labels": pair()[1]}, "must give (image, label) by index, but gives a dict"),
        ([{"image": pair()[0][0], "label": 0}], "must give (image, label) by index, but gives a dict"),
        (pair()[0], "must give (image, label) by index, but gives a Tensor"),
        ([], "`train` must have an image, but is empty"),
        (Stream(), "`train` must be a dataset with a length"),
        (iter([]), "`train` must be a dataset with a length"),
        ([("a.png", 0)], "float tensors [C, H, W], normalised for the network, but `train` gives str"),
        ((pair()[0][:, 0], pair()[1]), "but `train` gives torch.float32 of shape (4, 4)"),
        ((pair()[0].to(torch.uint8), pair()[1]), "but `train` gives torch.uint8 of shape (1, 4, 4)"),
        (DataLoader([(np.zeros((1, 4, 4), np.uint8), 0)]), "but `train` gives torch.uint8 of shape (1, 4, 4)"),
    ],
)
def test_data_that_cannot_be_searched_on_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        splits(given)
    assert "\n" not in str(caught.value)


def test_the_test_and_search_splits_are_checked_like_train() -> None:
    whole = (pair()[0].to(torch.uint8), pair()[1])
    for name in ("test", "search"):
        with pytest.raises(ValueError, match=rf"but `{name}` gives torch\.uint8"):
            splits(pair(), **{name: whole})


def test_a_fitting_network_is_copied_in_eval_mode() -> None:
    model = network(num_classes=5).train()
    copied = network_of(model=model, splits=splits(pair()))
    assert copied is not model
    assert not copied.training
    assert model.training


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network().forward, "`model` must be a torch.nn.Module, a network built, but got a method"),
        (nn.ReLU, "`model` must be a torch.nn.Module, a network built, but got a type"),
        (Dictionary(), "must return logits [B, num_classes], but returned a dict for 2 images"),
        (nn.Flatten(0), "must return logits [B, num_classes], but returned (32,) for 2 images"),
        (
            nn.Conv2d(3, 3, 3),
            "`model` must take images as `train` gives them, but fails on (2, 1, 4, 4) (Given groups=1",
        ),
        (nn.Bilinear(16, 16, 3), "but fails on (2, 1, 4, 4) (Bilinear.forward() missing 1 required"),
        (network(2), "less than the number of the network's outputs, 2, but `train` has 2; number the classes from 0"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_one_line(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        network_of(model=model, splits=splits(pair()))
    assert "\n" not in str(caught.value)


def test_labels_of_the_test_split_must_have_an_output_too() -> None:
    with pytest.raises(ValueError, match=r"outputs, 3, but `test` has 4"):
        network_of(model=network(3), splits=splits(pair(), test=pair(num_classes=5)))


def test_fingerprints_tell_images_labels_and_order_apart() -> None:
    images, labels = pair()
    assert fingerprint((images, labels)) == fingerprint((images.clone(), labels.clone()))
    others = [
        (images * 2, labels),
        (images.double() * 2, labels),
        (images[:, :, :2], labels),
        (images, 2 - labels),
        Subset(TensorDataset(images, labels), list(range(60))),
    ]
    assert len({fingerprint(given) for given in ((images, labels), *others)}) == 6
    whole = splits((images, labels)).train
    assert whole.select(torch.tensor([0, 1]), "a").fingerprint != whole.select(torch.tensor([1, 0]), "a").fingerprint


def test_a_fingerprint_reads_few_images_of_a_large_set() -> None:
    dataset = Drawn(pair()[0], num_images=6000)
    train = splits(dataset).train
    dataset.num_read = 0
    assert train.fingerprint == train.fingerprint
    assert 0 < dataset.num_read <= 32


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.random])
def test_augmentation_from_global_generators_does_not_hide_the_images(draw: Callable[[], float]) -> None:
    images, _ = pair()
    first = fingerprint(Drawn(images, draw))
    draw()
    assert fingerprint(Drawn(images, draw)) == first != fingerprint(Drawn(images + 1, draw))


def test_a_fingerprint_leaves_the_global_generators_as_they_were() -> None:
    train = splits(Drawn(pair()[0], lambda: float(torch.rand(())) + random.random() + np.random.random())).train  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert train.fingerprint
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002


def test_augmentation_from_a_generator_of_its_own_keeps_the_fingerprint() -> None:
    images, _ = pair()
    found = {fingerprint(Drawn(images, random.Random(seed).random)) for seed in (0, 1)}
    assert len(found) == 1


def test_one_image_has_a_fingerprint_too() -> None:
    images, labels = pair(1)
    one, other = (splits(pair(), test=(given, labels)).test.fingerprint for given in (images, images + 1))
    assert one != other
