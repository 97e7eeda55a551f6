"""Networks by name: the project's CIFAR ResNets and every classifier of torchvision.

New weights are drawn from torch's global generator; build inside `backends.seeding.isolated_rng`.
"""

from __future__ import annotations

import difflib
import logging
from typing import cast

import torch
import torchvision
from torch import nn

from backends.cifar_resnet import CifarResNet
from backends.data import Splits

log = logging.getLogger(__name__)


def cifar_resnet(*, depth: int, num_classes: int) -> nn.Module:
    """A CIFAR ResNet of `depth` 20, 32, 44, 56, 110 or any other 6n + 2. Raises ValueError on other depths."""
    return CifarResNet(depth, num_classes)


def torchvision_names() -> tuple[str, ...]:
    """Every classifier of torchvision."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def torchvision_model(*, name: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """The torchvision classifier `name`, without auxiliary heads.

    `weights` is None for new ones, DEFAULT, or an entry of the network's weights enum; these have 1,000 classes, and
    for another number the last layer is replaced by a new one, which is logged. Raises ValueError when the name or the
    weights are unknown (close names are listed) or can't be downloaded.
    """
    if name not in torchvision_names():
        close = difflib.get_close_matches(name, torchvision_names(), n=5, cutoff=0.5)
        raise ValueError(
            f"a torchvision model must be one of its {len(torchvision_names())} classifiers, but got {name!r}; "
            + (f"close: {', '.join(close)}" if close else "torchvision.models.list_models() lists them")
        )
    # Said outright, googlenet and inception don't warn that their default will change.
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if weights is None:
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    else:
        network = _pretrained(name, weights)
        _fit_head(network, name, num_classes)
    _remove_auxiliary_heads(network)
    return cast(nn.Module, network)


def check_network(network: nn.Module, splits: Splits) -> None:
    """Raises ValueError, in one line, unless `network` turns the dataset's images into one logit per class.

    Runs one black image in eval mode; the network's mode and generators are left alone.
    """
    size = splits.image_size
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, AssertionError) as error:  # torch's complaints about sizes, and vit's own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the network must take images of {size}×{size} pixels, but fails on one ({reason}); "
            "set dataset.build.image_size to what it was made for"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"the network must return logits [B, num_classes], but returned {shape} for one image")
    if logits.shape[1] != splits.num_classes:
        raise ValueError(
            f"the network must have one output per class of the dataset, but has {logits.shape[1]} for "
            f"{splits.num_classes} classes; set model.num_classes={splits.num_classes}"
        )


def _pretrained(name: str, weights: str) -> nn.Module:
    enum = torchvision.models.get_model_weights(name)
    offered = [entry.name for entry in enum]
    if weights != "DEFAULT" and weights not in offered:
        raise ValueError(f"weights of {name} must be one of DEFAULT, {', '.join(offered)}, but got {weights!r}")
    chosen = enum[weights]
    try:
        return cast(nn.Module, torchvision.models.get_model(name, weights=chosen))
    except (OSError, RuntimeError) as error:  # no network or no room; a download cut short fails its hash
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights {chosen.name} of {name} must be downloadable from {chosen.url}, but got: {reason}; "
            "download the file elsewhere and set model.weights=<its path>"
        ) from error


def _fit_head(network: nn.Module, name: str, num_classes: int) -> None:
    """Gives the last layer `num_classes` outputs, unless it has as many."""
    path, head = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not path.startswith(("aux", "AuxLogits"))
    ][-1]
    old = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    if old == num_classes:
        return
    new: nn.Module
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    else:
        assert head.kernel_size == (1, 1), f"{name}'s last convolution is no classifier"
        new = nn.Conv2d(head.in_channels, num_classes, 1, bias=head.bias is not None)
    network.set_submodule(path, new)
    log.info("%s: last layer %r replaced, %d -> %d classes, weights new", name, path, old, num_classes)


def _remove_auxiliary_heads(network: nn.Module) -> None:
    # Theirs is a training trick that returns a tuple; torchvision itself drops them this way.
    if hasattr(network, "aux_logits"):
        network.aux_logits = False  # type: ignore[assignment]
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(network, head):
                setattr(network, head, None)
