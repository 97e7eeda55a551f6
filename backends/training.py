"""Training a network in place, and measuring one: SGD with Nesterov momentum, linear warm-up and a cosine to zero.

The schedule is that of Goyal et al. (2017, arXiv:1706.02677) and Loshchilov & Hutter (2017, arXiv:1608.03983), by the
step rather than the epoch; weight decay is on convolution and linear weights only, not on biases and norms (He et al.
2019, arXiv:1812.01187, section 3.1).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from backends.checkpoint import load_plain, save_atomically
from backends.data import Split
from backends.precision import PRECISIONS, training_precision
from backends.seeding import get_rng_state, isolated_rng, set_rng_state
from compsearch.trial import Measurement

#: Losses are looked at this often: on a GPU each look waits for the device.
_STEPS_PER_LOOK = 10

#: Epochs that end sooner than this after the last checkpoint write none: resnet50's takes half a second, and an epoch
#: on the digits four.
_CHECKPOINT_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Recipe:
    """How to train. `lr` is the peak, reached after `warmup_epochs` (fractions count).

    `distill_weight` is the share of the distillation term in the loss, 0 for none. `precision` is as
    `backends.precision.training_precision` takes it (autocast: weights stay float32).
    """

    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    warmup_epochs: float
    label_smoothing: float
    nesterov: bool
    distill_weight: float
    distill_temperature: float
    precision: str

    def __post_init__(self) -> None:
        rules = [
            ("epochs", "epochs >= 0", self.epochs >= 0),
            ("lr", "lr > 0", self.lr > 0),
            ("momentum", "0 <= momentum < 1", 0 <= self.momentum < 1),
            ("momentum", "momentum > 0 where nesterov", self.momentum > 0 or not self.nesterov),
            ("weight_decay", "weight_decay >= 0", self.weight_decay >= 0),
            ("batch_size", "batch_size >= 2", self.batch_size >= 2),
            ("warmup_epochs", "warmup_epochs >= 0", self.warmup_epochs >= 0),
            ("label_smoothing", "0 <= label_smoothing < 1", 0 <= self.label_smoothing < 1),
            ("distill_weight", "0 <= distill_weight <= 1", 0 <= self.distill_weight <= 1),
            ("distill_temperature", "distill_temperature > 0", self.distill_temperature > 0),
            ("precision", f"precision in {PRECISIONS}", self.precision in PRECISIONS),
        ]
        for name, rule, holds in rules:
            if not holds:
                raise ValueError(f"`{rule}` must hold for a recipe, but got {name}={getattr(self, name)!r}")


@dataclass(frozen=True)
class ScratchRecipe(Recipe):
    """How to train from new weights: what the network has learned before is forgotten, and there is no teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distill_weight:
            raise ValueError(
                f"a recipe from scratch has no teacher, but got {self.distill_weight=}; set distill_weight=0"
            )


def forget(network: nn.Module, seed: int) -> None:
    """Gives `network`, in place, new weights that follow from `seed`; its device stays, the global generators too.

    Every module's own `reset_parameters` draws them, those of modules around others last: a network's own
    initialisation overrides its layers'. Raises ValueError for parameters that no module would draw anew.
    """
    modules = list(network.named_modules())
    drawing = [name for name, module in modules if callable(getattr(module, "reset_parameters", None))]
    for name, _ in network.named_parameters():
        if not any(not module or name.startswith(f"{module}.") for module in drawing):
            raise ValueError(
                f"training from scratch needs new weights for every parameter, but nothing around {name!r} has a "
                "reset_parameters(); give its module one, or use training@finetune=finetune"
            )
    devices = {parameter.device for parameter in network.parameters()}
    assert len(devices) <= 1
    with isolated_rng(seed, next(iter(devices), None)), torch.no_grad():
        for _, module in reversed(modules):  # what is inside comes after what it is in
            if callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()


def train(
    network: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    progress: str | None = None,
) -> None:
    """Trains `network` on `split`, in place; it ends on `device`, in the mode it came in.

    Order, augmentation and dropout follow from `seed`; the global generators are left alone. With `checkpoint` the
    state at the end of an epoch is written there, every ten seconds at most, and found there, training continues as if
    never interrupted. `progress`
    is what the bar says. `teacher`, unchanged, gives the targets of the distillation term.

    Raises ValueError when the loss is not finite, the recipe distils but no teacher is given, or the checkpoint belongs
    to another training.
    """
    if recipe.distill_weight > 0 and teacher is None:
        raise ValueError(
            f"a recipe with distillation must be given a teacher, but got {recipe.distill_weight=} and none; "
            "set distill_weight=0"
        )
    teacher = teacher if recipe.distill_weight > 0 else None
    with (
        isolated_rng(seed, device),
        in_mode(network, training=True),
        in_mode(teacher, training=False),
        _fastest_format(network, split, device) as memory_format,
    ):
        _run(network, split, recipe, device, seed, teacher, checkpoint, progress, memory_format)


def _run(
    network: nn.Module,
    split: Split,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    teacher: nn.Module | None,
    checkpoint: Path | None,
    progress: str | None,
    memory_format: torch.memory_format,
) -> None:
    if teacher is not None:
        teacher.to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(network, recipe)
    state = _State(network, optimizer, generator, device, _identity(network, split, recipe, seed))
    first_epoch = state.load(checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    steps_per_epoch = num_batches(split.num_images, recipe.batch_size)
    autocast_dtype = torch.bfloat16 if training_precision(recipe.precision, network, device) == "bfloat16" else None
    bar = tqdm(
        desc=progress,
        total=recipe.epochs * steps_per_epoch,
        initial=first_epoch * steps_per_epoch,
        unit="step",
        leave=False,
        disable=True if progress is None else None,
    )
    saved_at = time.monotonic()
    with bar:
        for epoch in range(first_epoch, recipe.epochs):
            losses: list[Tensor] = []
            for step, (images, labels) in enumerate(split.training_batches(recipe.batch_size, generator)):
                for group in optimizer.param_groups:
                    group["lr"] = _lr(recipe, epoch + step / steps_per_epoch, 1 / steps_per_epoch)
                images = images.to(device, memory_format=memory_format)
                labels = labels.to(device)
                with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                    logits = network(images)
                    targets = None
                    if teacher is not None:
                        with torch.no_grad():
                            targets = teacher(images)
                loss = training_loss(logits, labels, targets, recipe)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
                if (step + 1) % _STEPS_PER_LOOK == 0:
                    bar.set_postfix_str(
                        f"epoch {epoch + 1}/{recipe.epochs} loss {_look(losses, epoch, step, recipe):.3f}"
                    )
                bar.update()
            _look(losses, epoch, steps_per_epoch - 1, recipe)
            is_due = time.monotonic() - saved_at >= _CHECKPOINT_INTERVAL_S or epoch + 1 == recipe.epochs
            if checkpoint is not None and is_due:
                state.save(checkpoint, epoch + 1)
                saved_at = time.monotonic()


def training_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, recipe: Recipe) -> Tensor:
    """Scalar loss from logits [B, num_classes] and labels [B], in float32.

    ``(1 - w) * cross_entropy + w * T² * KL(teacher_T || student_T)`` with w = `distill_weight` and both softmaxes at
    temperature T (Hinton et al. 2015, arXiv:1503.02531, section 2); cross-entropy alone without teacher logits.
    """
    hard = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    if teacher_logits is None:
        return hard
    temperature = recipe.distill_temperature
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    return (1 - recipe.distill_weight) * hard + recipe.distill_weight * soft


def measure(network: nn.Module, split: Split, *, device: torch.device, batch_size: int) -> Measurement:
    """Accuracy, top-5 and mean cross-entropy on all of `split`, in float32 and eval mode.

    Moves `network` to `device` and leaves its mode as it was. All three are NaN when any logit is not finite. `costs`
    is left empty.
    """
    network.to(device)
    correct = correct5 = num_images = 0
    total_loss = 0.0
    finite = True
    with in_mode(network, training=False), torch.inference_mode():
        for images, labels in split.batches(batch_size):
            logits = network(images.to(device)).float()  # [B, num_classes]
            labels = labels.to(device)
            finite = finite and bool(logits.isfinite().all())
            top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            correct += int(top[:, 0].sum())
            correct5 += int(top.sum())
            total_loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            num_images += len(labels)
    if not finite:
        return Measurement(split.name, num_images, math.nan, math.nan, math.nan)
    return Measurement(split.name, num_images, correct / num_images, correct5 / num_images, total_loss / num_images)


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else as torch names it. Raises ValueError."""
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:<index>, but got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:<index>, but got {device!r}")
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"`device` must be on this machine, but got {device!r} and there are {count} CUDA devices; "
                "use device=cpu or device=auto"
            )
        return torch.device("cuda", resolved.index or 0)
    return torch.device("cpu")


def _lr(recipe: Recipe, position: float, step: float) -> float:
    """The learning rate of the step that begins at `position` and is `step` long, both in epochs."""
    if position < recipe.warmup_epochs:
        # Measured at the step's end, or the first one would learn nothing.
        return recipe.lr * min(1.0, (position + step) / recipe.warmup_epochs)
    done = (position - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, step)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        foreach=True,  # not the default on the CPU; resnet50's step takes 28 ms instead of 46 there
    )


def num_batches(num_images: int, batch_size: int) -> int:
    """As many as `Split.training_batches` gives."""
    whole, rest = divmod(num_images, batch_size)
    return whole + (rest > 1 or whole == 0)


def _look(losses: list[Tensor], epoch: int, step: int, recipe: Recipe) -> float:
    """The mean of `losses`, which end at `step` and are then forgotten. Raises ValueError unless all are finite."""
    values = [float(loss) for loss in torch.stack(losses)] if losses else []
    losses.clear()
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(
                f"the training loss must be finite, but got {value} in epoch {epoch + 1}, step "
                f"{step - len(values) + index + 2}, with lr={recipe.lr}; lower lr or raise warmup_epochs"
            )
    return sum(values) / max(1, len(values))


def structure_digest(network: nn.Module) -> str:
    """Tells apart networks whose modules, parameters or buffers differ by more than their values."""
    shapes = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in network.state_dict().items()]
    return hashlib.sha256("\n".join([repr(network), *shapes]).encode()).hexdigest()


def _identity(network: nn.Module, split: Split, recipe: Recipe, seed: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(recipe),
        "network": structure_digest(network),
        "split": split.fingerprint,
        "seed": seed,
    }


@dataclass(frozen=True)
class _State:
    """Everything the next epoch depends on."""

    network: nn.Module
    optimizer: torch.optim.SGD
    generator: torch.Generator
    device: torch.device
    identity: dict[str, Any]

    def save(self, path: Path, epoch: int) -> None:
        state = {
            "identity": self.identity,
            "epoch": epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "global_rng": get_rng_state(self.device),
        }
        save_atomically(state, path)

    def load(self, path: Path) -> int:
        """Restores all and returns the number of finished epochs."""
        state = load_plain(path)
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            found = state.get("identity", {}) if isinstance(state, dict) else {}
            differing = [key for key, value in self.identity.items() if found.get(key) != value]
            raise ValueError(
                f"a training checkpoint must come from the same network, recipe, data and seed, but {path} differs in "
                f"{', '.join(differing)}; remove it to train anew"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        set_rng_state(state["global_rng"], self.device)
        return int(state["epoch"])


@contextmanager
def in_mode(network: nn.Module | None, *, training: bool) -> Iterator[None]:
    """Train or eval mode inside, every module's own mode again after."""
    if network is None:
        yield
        return
    modes = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _fastest_format(network: nn.Module, split: Split, device: torch.device) -> Iterator[torch.memory_format]:
    """On `device` and in the memory format that convolutions are fastest with; contiguous again after."""
    is_last = fits_channels_last(network.to(device), split, device)
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    network.to(memory_format=memory_format)
    try:
        yield memory_format
    finally:
        network.to(memory_format=torch.contiguous_format)


def fits_channels_last(network: nn.Module, split: Split, device: torch.device) -> bool:
    """Whether `network`, on `device`, runs in the format that convolutions are fastest with.

    It is contiguous after. Networks with ``x.view(len(x), -1)`` after a convolution fail on channels-last images.
    """
    network.to(memory_format=torch.channels_last)
    ((image, _),) = split.select(torch.tensor([0]), split.name).batches(1)
    try:
        with in_mode(network, training=False), torch.no_grad():
            network(image.repeat(2, 1, 1, 1).to(device, memory_format=torch.channels_last))
    except RuntimeError:
        return False
    finally:
        network.to(memory_format=torch.contiguous_format)
    return True
