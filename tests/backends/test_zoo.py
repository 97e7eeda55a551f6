import urllib.error
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from backends import datasets, zoo
from backends.augmentation import ShiftFlip
from backends.seeding import isolated_rng


@pytest.fixture(scope="module")
def splits():
    return datasets.digits(
        image_size=32,
        search_images=200,
        max_search_share=0.2,
        seed=0,
        normalise="digits",
        augmentation=ShiftFlip(padding=2, flip=False),
    )


def test_every_torchvision_classifier_is_offered():
    assert len(zoo.torchvision_names()) >= 80
    assert {"resnet50", "mobilenet_v2", "vit_b_16"} <= set(zoo.torchvision_names())


class WithoutMemory(TorchFunctionMode):
    """Parameters on the meta device; unlike under ``torch.device("meta")``, RegNet can compute its widths."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {**(kwargs or {})}
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", zoo.torchvision_names())
def test_every_classifier_builds_without_warning_and_its_head_can_be_replaced(name):
    with WithoutMemory():
        network = zoo.torchvision_model(name=name, num_classes=7)
        before = {key: value.shape for key, value in network.state_dict().items()}
        zoo._fit_head(network, name, 1000)
    after = {key: value.shape for key, value in network.state_dict().items()}
    head = {key for key, shape in before.items() if shape[:1] == (7,)}
    assert head
    assert {key: (1000, *shape[1:]) if key in head else shape for key, shape in before.items()} == after


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_there_are_no_auxiliary_heads(name):
    with torch.device("meta"):
        network = zoo.torchvision_model(name=name, num_classes=5)
        assert not [key for key, _ in network.named_modules() if key.lower().startswith("aux")]
        assert network.train()(torch.empty(2, 3, 299, 299)).shape == (2, 5)


def test_the_cifar_resnet_has_the_depth_asked_for():
    network = zoo.cifar_resnet(depth=20, num_classes=7)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 19
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(ValueError, match=r"got 'resnet5'; close: .*resnet50") as error:
        zoo.torchvision_model(name="resnet5", num_classes=10)
    assert "\n" not in str(error.value)


def test_a_name_close_to_none_says_where_they_are():
    with pytest.raises(ValueError, match=r"list_models\(\) lists them"):
        zoo.torchvision_model(name="qqqq", num_classes=10)


def test_unknown_weights_list_the_known_ones():
    with pytest.raises(ValueError, match="one of DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, but got 'BEST'"):
        zoo.torchvision_model(name="resnet50", num_classes=10, weights="BEST")


def test_weights_that_cannot_be_downloaded_are_one_line_with_the_way_out(monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ValueError, match=r"https://.*resnet18.*Name or service.*model\.weights=<its path>") as error:
        zoo.torchvision_model(name="resnet18", num_classes=10, weights="DEFAULT")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("googlenet", "fc"), ("squeezenet1_1", "classifier.1")])
def test_pretrained_weights_keep_all_but_a_replaced_head_which_is_said(monkeypatch, caplog, name, head):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torchvision.models.get_model(name, weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
    with caplog.at_level("INFO"):
        network = zoo.torchvision_model(name=name, num_classes=10, weights="IMAGENET1K_V1")
    assert f"last layer '{head}' replaced, 1000 -> 10 classes" in caplog.text
    loaded = network.state_dict()
    assert loaded[f"{head}.weight"].shape[0] == 10
    same = [key for key in loaded if not key.startswith(head)]
    assert all(torch.equal(loaded[key], state[key]) for key in same)
    assert {key for key in state if not key.startswith((head, "aux"))} == set(same)


def test_a_seed_determines_new_weights():
    drawn = []
    for seed in (0, 0, 1):
        with isolated_rng(seed):
            drawn.append(zoo.torchvision_model(name="squeezenet1_1", num_classes=3).state_dict()["features.0.weight"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_fitting_network_passes_and_keeps_its_mode(splits):
    network = zoo.cifar_resnet(depth=8, num_classes=10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    zoo.check_network(network, splits)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_wrong_number_of_classes_is_one_line(splits):
    with pytest.raises(ValueError, match=r"has 7 for 10 classes; set model\.num_classes=10"):
        zoo.check_network(zoo.cifar_resnet(depth=8, num_classes=7), splits)


@pytest.mark.parametrize("name", ["inception_v3", "alexnet", "vit_b_32"])
def test_images_too_small_for_the_network_are_one_line(splits, name):
    network = zoo.torchvision_model(name=name, num_classes=10)
    with pytest.raises(
        ValueError, match=r"of 32×32 pixels, but fails on one \(.*set dataset\.build\.image_size"
    ) as error:
        zoo.check_network(network, splits)
    assert "\n" not in str(error.value)


def test_a_network_that_returns_no_logits_is_refused(splits):
    with pytest.raises(ValueError, match=r"must return logits \[B, num_classes\], but returned \(1, 3, 32, 32\)"):
        zoo.check_network(nn.Identity(), splits)
