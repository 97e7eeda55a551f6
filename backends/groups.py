"""`trace`: the search space of any network, from one forward on channel labels."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from backends import forwards
from backends.draft import Draft
from backends.forwards import Subject
from backends.labels import Labels
from backends.mixed_operation import MixedOperation
from backends.residual_branches import residual_blocks
from backends.surgery import named_tensors
from backends.verification import Run, Verifier
from compsearch.space import SearchSpace, allowed_counts


def trace(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    divisor: int,
    min_keep_ratio: float,
    min_choices: int = 8,
    freeze: Sequence[str] = (),
    coupled: bool = True,
    skip_blocks: bool | None = False,
) -> SearchSpace:
    """The search space of `model`, found by running it once on `example_input` (a batch, or a tuple of arguments).

    `divisor`, `min_keep_ratio` and `min_choices` are as in `compsearch.space.allowed_counts`. `freeze` are fnmatch
    patterns of groups to leave alone, or of layers whose output channels are; ``coupled=False`` leaves alone every
    group that several layers emit; with ``skip_blocks=True``, residual branches whose shortcut computes nothing may be
    skipped (`backends.residual_branches`). The model is not changed: copies of it run in eval mode, on shapes alone
    where its forward allows, else on its values.

    A group's producers are the convolutions and linear layers that emit its channels, its consumers those that read
    them, both in forward order. A depthwise or grouped convolution passes on what it reads: it is neither producer nor
    consumer, and does not make a group coupled.

    Raises ValueError when the model does not run on the example, or a `freeze` pattern matches nothing.
    """

    def allowed(size: int, width: int) -> tuple[int, ...]:
        return allowed_counts(
            size, width=width, divisor=divisor, min_keep_ratio=min_keep_ratio, min_choices=min_choices
        )

    allowed(8, 1)  # refuses a bad divisor or ratio before any work
    if any(isinstance(module, MixedOperation) for module in model.modules()):
        raise ValueError(
            "this network has several operations in one place, of which channels can't go; use space=mbconv"
        )
    subject, labels, runs = _dense_runs(model, _inputs(example_input))
    draft = Draft(subject.module, subject.batch_size, labels, runs[False].tracer, allowed)
    for group in [group for group in draft.groups if group.group.size == 1]:
        tied = f", tied by {', '.join(group.group.tied_by[:3])}" if group.group.tied_by else ""
        draft.freeze([group], f"one unit, which cannot be emptied{tied}")
    full = [group for group in draft.groups if len(group.group.counts) == 1]
    draft.freeze(full, f"no smaller count is allowed ({divisor=}, {min_keep_ratio=})")
    if not coupled:
        several = [group for group in draft.groups if group.group.is_coupled]
        draft.freeze(several, "emitted by several layers (the space's coupled option is off)")
    for pattern in freeze:
        _freeze_matching(draft, pattern)
    Verifier(draft, subject, runs).settle()
    if skip_blocks:
        weights = [layer.parameter for layer in draft.layers]
        names = [group.group.name for group in draft.groups]
        draft.blocks = residual_blocks(model, _inputs(example_input), weights, names)
    return draft.space()


def trace_layers(model: nn.Module, example_input: Tensor | tuple[Any, ...]) -> SearchSpace:
    """The layers of `model` in forward order with what they cost, as a space that leaves no choice.

    As `trace`, it runs a copy of the model once. Raises ValueError when that fails.
    """
    subject, labels, runs = _dense_runs(model, _inputs(example_input))
    draft = Draft(subject.module, subject.batch_size, labels, runs[False].tracer, lambda size, width: (size,))
    draft.groups, draft.frozen = [], []
    return draft.space()


def _inputs(example_input: Any) -> tuple[Any, ...]:
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not any(isinstance(value, Tensor) for value in inputs):
        raise ValueError(
            f"`example_input` must be a tensor or a tuple with one, but got {type(example_input).__name__}"
        )
    return inputs


def _dense_runs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Subject, Labels, dict[bool, Run]]:
    """The dense network followed on labels: on shapes, or on values when the forward needs them.

    Runs are by whether in training mode, which is followed when parameters are left over (auxiliary classifiers): they
    read channels that may go, but what they emit stays.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    try:
        subject, labels = forwards.on_meta(model, inputs), Labels(shapes)
        run = _dense_run(subject, labels, training=False)
    except Exception:  # shapes do not suffice (values are read, tensors are made elsewhere); a user's fault shows below
        labels = Labels(shapes)
        try:
            subject = forwards.for_real(model, inputs)
            run = _dense_run(subject, labels, training=False)
        except Exception as error:  # a forward may raise anything
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the model must run on the example input, but raises {type(error).__name__}: {message}"
            ) from error
    runs = {False: run}
    if any(name not in run.tracer.used for name, _ in model.named_parameters()):
        try:
            runs[True] = _dense_run(subject, labels, training=True)
        except Exception:  # what only training uses may need what only training has (targets); it is then left as it is
            return subject, labels, runs
        for name, record in runs[True].tracer.layers.items():
            if name not in run.tracer.layers:
                labels.freeze(record.outs, "runs in training only")
    return subject, labels, runs


def _dense_run(subject: Subject, labels: Labels, *, training: bool) -> Run:
    """Follows the dense network; again where channels of one tensor were tied, as rules ask what is tied already."""
    run = _dense_pass(subject, labels, None, training=training)
    singles = None
    if not training and subject.batch_size > 1 and not run.tracer.all_of_images:
        singles = _products_of_one(subject)
        if singles is not None and len(singles) == len(run.tracer.products):
            labels.forget_meetings()
            run = _dense_pass(subject, labels, singles, training=training)
        else:
            singles = None
    settled = not labels.ties_within_an_axis()
    while not settled:
        before = labels.progress()
        labels.forget_meetings()
        run = _dense_pass(subject, labels, singles, training=training)
        settled = labels.progress() == before
    return run


def _products_of_one(subject: Subject) -> Sequence[int] | None:
    """The multiply-accumulates of every operation on one image; None where the forward takes no single one."""
    module = forwards.copied(subject.module)
    labels = Labels({name: tuple(tensor.shape) for name, tensor in named_tensors(module)})
    tracer = forwards.follower(module, labels, {})
    try:
        forwards.follow(tracer, module, forwards.of_one_image(subject.inputs))
    except Exception:  # a forward may raise anything
        return None
    return tracer.products


def _dense_pass(subject: Subject, labels: Labels, singles: Sequence[int] | None, *, training: bool) -> Run:
    module = forwards.copied(subject.module).train(training)
    tracer = forwards.follower(module, labels, {}, singles=singles)
    shapes, output = forwards.follow(tracer, module, subject.inputs_for(training=training))
    return Run(tracer, shapes, output)


def _freeze_matching(draft: Draft, pattern: str) -> None:
    layers = {layer.name for layer in draft.layers if fnmatch.fnmatchcase(layer.name, pattern)}
    named = [group for group in draft.groups if fnmatch.fnmatchcase(group.group.name, pattern)]
    emitted = [group for group in draft.emitted_by(layers) if group not in named]
    matched = named + emitted
    if not matched and not layers and not any(fnmatch.fnmatchcase(frozen.name, pattern) for frozen in draft.frozen):
        names = ", ".join(group.group.name for group in draft.groups[:5])
        raise ValueError(
            f"a pattern of the space's freeze option must match a group or layer, but got {pattern!r}; "
            f"names are like {names}"
        )
    draft.freeze(matched, "frozen by the space's freeze option")
