"""Rebuilding a network around other tensors leaves everything else as `copy.deepcopy` does."""

import copy
from collections import defaultdict
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from backends.surgery import rebuild


def network() -> nn.Module:
    """Layers of many kinds, some with more about them than torch gives them."""
    model = torchvision.models.mobilenet_v3_small(num_classes=10).train()
    model.tied = model.features[0][0]
    first, second = (model.features[index].block[0][0] for index in (2, 3))
    first.notes = ["a list", {"of": "things"}]
    second.register_forward_hook(lambda module, args, output: output + 1)
    model.features[1].block[0][1].eval()
    model.features[1].block[0][0].weight.requires_grad_(False)
    return model


class Named(list[int]):
    def __init__(self, name: str) -> None:
        self.name = name


class Text(str):
    notes: list[int]


def unchanged(name: str, tensor: Tensor) -> Tensor:
    return tensor


def test_a_rebuilt_network_has_what_deepcopy_gives_it() -> None:
    model = network()
    rebuilt, copied = rebuild(model, unchanged), copy.deepcopy(model)
    for (name, left), (other, right) in zip(rebuilt.named_modules(), copied.named_modules(), strict=True):
        assert (name, type(left), left.training) == (other, type(right), right.training)
        assert [*vars(left)] == [*vars(right)], name
        for key, value in vars(right).items():
            assert type(vars(left)[key]) is type(value), (name, key)
            if value is None or isinstance(value, int | float | str | tuple):
                assert vars(left)[key] == value, (name, key)
    assert rebuilt.tied is rebuilt.features[0][0]
    assert [*rebuilt.state_dict()] == [*copied.state_dict()]
    wanted = [parameter.requires_grad for parameter in copied.parameters()]
    assert [parameter.requires_grad for parameter in rebuilt.parameters()] == wanted
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(rebuilt.eval()(images), copied.eval()(images))


def test_what_users_give_torchs_layers_is_copied_as_deepcopy_does() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.ReLU())
    model[0].stats = defaultdict(list)
    model[1].log = model[2].log = []
    model[1].named, model[1].text = Named("empty"), Text("text")
    model[1].text.notes = []
    rebuilt = rebuild(model, unchanged)
    rebuilt[0].stats["seen"].append(1)
    assert not model[0].stats
    assert rebuilt[1].log is rebuilt[2].log is not model[1].log
    assert rebuilt[1].named.name == "empty"
    assert rebuilt[1].text.notes is not model[1].text.notes


def test_nothing_that_can_change_is_shared_with_the_network_given() -> None:
    model = network()
    rebuilt = rebuild(model, unchanged)
    containers = (dict, list, set)

    def held(root: nn.Module) -> dict[int, Any]:
        found = [value for module in root.modules() for value in (module, *vars(module).values())]
        found += [tensor for module in root.modules() for tensor in (*module.parameters(), *module.buffers())]
        return {id(each): each for each in found if isinstance(each, (nn.Module, Tensor, *containers))}

    assert not set(held(model)) & set(held(rebuilt))
    rebuilt.features[2].block[0][0].notes[1]["of"] = "other things"
    assert model.features[2].block[0][0].notes[1] == {"of": "things"}
    rebuilt.features[0][1].register_forward_hook(lambda module, args, output: output + 1)
    assert not model.features[0][1]._forward_hooks
