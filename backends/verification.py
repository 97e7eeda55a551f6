"""Whether a forward, run again on fewer channels, does the same with them.

Labels say what a network did once. A forward may still name sizes (``x.view(-1, 400)``, a hidden width kept in an
attribute), so groups are tried: channels scattered over every group are removed, and the network that is left runs on
the *original* labels. It must run the same operations on the same tensors, with the same numbers but for sizes of
channels (`backends.program`), return the same shapes and tie no channels that the dense network did not tie; then it is
exact, whatever the weights. A size that a module holds in an attribute is made to follow the channels it counts, where
that helps; groups still found guilty are frozen with what happened as the reason.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backends import forwards
from backends.draft import Draft, DraftGroup
from backends.forwards import Shapes, Subject
from backends.held_sizes import Held
from backends.labels import Conflict
from backends.surgery import extract
from backends.tracer import Tracer
from compsearch.space import IntArray, Policy, SearchSpace


@dataclass(frozen=True)
class Run:
    """What the dense network did and returned (shapes and labels), which must come out again."""

    tracer: Tracer
    shapes: Shapes
    output: Sequence[Tensor]


@dataclass(frozen=True)
class Failure:
    """Why a try-out failed, the groups to suspect first, and the module that was running, if one was."""

    reason: str
    suspects: list[DraftGroup]
    module: str | None = None

    def is_past(self, module: str) -> bool:
        """Whether it is known to have happened outside `module`."""
        return (
            self.module is not None and self.module != module and not self.module.startswith(f"{module}.".lstrip("."))
        )


class Verifier:
    """Tries groups of a draft out; `runs` are the dense network's, by whether it was in training mode."""

    def __init__(self, draft: Draft, subject: Subject, runs: Mapping[bool, Run]) -> None:
        self._draft = draft
        self._subject = subject
        self._runs = runs
        #: Modules whose held sizes were looked at.
        self._refitted: set[str] = set()

    def settle(self) -> None:
        """Freezes the groups of the draft whose channels the forward depends on."""
        while True:
            for smallest in (True, False):
                self._settle_together(smallest=smallest)
            if self._holds_apart():
                return

    def _settle_together(self, *, smallest: bool) -> None:
        """Freezes groups until all that are left pass together."""
        while self._draft.groups:
            failure = self._try(self._draft.groups, smallest=smallest)
            if failure is None:
                return
            if self._refit(failure, smallest=smallest):
                continue
            guilty = [group for group in failure.suspects if self._try([group], smallest=smallest)]
            self._draft.freeze(guilty or [self._bisect(self._draft.groups, smallest=smallest)], failure.reason)

    def _holds_apart(self) -> bool:
        """Whether guessed sizes follow the right groups: of any two, one loses channels while the other does not.

        Where not, a group is frozen.
        """
        groups = self._draft.groups
        if self._draft.sizes.keys() <= self._runs[False].tracer.sizes.keys():
            return True  # no size was guessed
        for bit, side in itertools.product(range(len(groups).bit_length()), (0, 1)):
            some = [group for place, group in enumerate(groups) if place >> bit & 1 == side]
            failure = self._try(some, smallest=True) if some else None
            if failure is not None:
                guilty = [group for group in failure.suspects if group in some and self._try([group], smallest=True)]
                self._draft.freeze(guilty or [self._bisect(some, smallest=True)], failure.reason)
                return False
        return True

    def _refit(self, failure: Failure, *, smallest: bool) -> bool:
        """Lets sizes that the module held which failed, or one around it, follow its channels, if it then works."""
        path = [] if failure.module is None else failure.module.split(".")
        around = [".".join(path[:end]) for end in range(len(path), -1, -1)] if path else []
        return any(name not in self._refitted and self._refit_module(name, smallest=smallest) for name in around)

    def _refit_module(self, name: str, *, smallest: bool) -> bool:
        """Tries guesses about one module; what works, or that nothing does, is taken over for others of its class."""
        meetings, labels = self._runs[False].tracer.meetings, self._draft.labels
        before = dict(self._draft.sizes)

        def works(attributes: Sequence[str], place: int) -> bool:
            held = meetings.guess(name, labels, attributes, place)
            self._draft.sizes = before | held
            return self._counts_groups(held) and self._gets_past(name, held, smallest=smallest)

        found = next((guess for guess in meetings.guesses(name, labels) if works(*guess)), None)
        if found is None:
            self._draft.sizes = before
            self._refitted.update([name], meetings.alike(name))
            return False
        attributes, place = found
        for attribute in attributes if len(attributes) > 1 else ():
            fewer = tuple(each for each in attributes if each != attribute)
            attributes = fewer if fewer and works(fewer, place) else attributes
        self._draft.sizes = before | meetings.guess(name, labels, attributes, place)
        for other in meetings.alike(name):
            held = meetings.guess(other, labels, attributes, place)
            if other not in self._refitted and self._counts_groups(held):
                self._draft.sizes.update(held)
        self._refitted.add(name)
        return True

    def _counts_groups(self, held: Held) -> bool:
        """Whether sizes count groups, whole and all units alike, so that they follow from the numbers kept."""
        times = [
            (roots == group.roots[:, None]).sum(1)
            for roots in (self._draft.labels.roots(labels.numpy()) for labels in held.values())
            for group in self._draft.owners(roots)
        ]
        return bool(times) and all((each == each[0]).all() for each in times)

    def _gets_past(self, module: str, held: Held, *, smallest: bool) -> bool:
        """Whether `module` works, with channels removed everywhere and only where the sizes count them or do not."""
        groups = self._draft.groups
        counted = self._draft.owners(np.concatenate([labels.numpy() for labels in held.values()]))
        for some in (groups, counted, [group for group in groups if group not in counted]):
            failure = self._try(some, smallest=smallest) if some else None
            if failure is not None and not failure.is_past(module):
                return False
        return True

    def _bisect(self, groups: Sequence[DraftGroup], *, smallest: bool) -> DraftGroup:
        """The last group of the shortest leading run of `groups` that fails together."""
        low, high = 0, len(groups)
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(groups[:middle], smallest=smallest):
                high = middle
            else:
                low = middle
        return groups[high - 1]

    def _try(self, groups: Sequence[DraftGroup], *, smallest: bool) -> Failure | None:
        """Removes channels of `groups` and follows what is left; with `smallest`, also runs at the fewest channels."""
        space = self._draft.space(groups)
        self._draft.labels.seal(self._draft.live(groups))
        with warnings.catch_warnings():
            # A try-out may warn about sizes that nobody chose.
            warnings.simplefilter("ignore")
            for training, run in self._runs.items():
                failure = self._follow(space, run, smallest=smallest, training=training)
                if failure is not None:
                    return failure
        return None

    def _follow(self, space: SearchSpace, run: Run, *, smallest: bool, training: bool) -> Failure | None:
        labels = self._draft.labels
        policy = _scattered(space, smallest=smallest)
        module = extract(self._subject.module, space, policy).train(training)
        tracer = forwards.follower(module, labels, _kept_entries(space, policy), run.tracer)
        inputs = self._subject.inputs_for(training=training)
        try:
            shapes, output = forwards.follow(tracer, module, inputs)
            if labels.conflict:
                return self._blame(labels.conflict)
            if len(tracer.program.steps) != len(run.tracer.program.steps):
                return Failure("the forward goes another way on fewer channels", [])
            if not all(map(torch.equal, output, run.output)):
                return Failure("the output's order depends on it", [])
            if shapes == run.shapes and smallest and (space.min_counts < 2).any():
                lowest = extract(self._subject.module, space, space.select(space.min_counts, np.zeros(space.num_units)))
                shapes = forwards.output_shapes(lowest.train(training), inputs)
        except Conflict as conflict:
            return self._blame(conflict, tracer.running)
        except Exception as error:  # a forward may raise anything when it meets sizes it was not written for
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            place = "" if tracer.where == "the forward" else f", in {tracer.where}"
            reason = f"the forward fails on fewer channels{place}: {message[:120]}"
            return Failure(reason, self._draft.owners(tracer.recent()), tracer.running)
        return Failure("the output's shape depends on it", []) if shapes != run.shapes else None

    def _blame(self, conflict: Conflict, module: str | None = None) -> Failure:
        return Failure(f"its number or position matters: {conflict}", self._draft.owners(conflict.roots), module)


def _scattered(space: SearchSpace, *, smallest: bool) -> Policy:
    """Channels spread over each group: as few as allowed but at least two (one would broadcast), or some number."""
    rng = np.random.default_rng(0)
    counts = []
    for group in space.groups:
        fewer = [count for count in group.counts[:-1] if count >= 2] or [group.counts[0]]
        counts.append(fewer[0] if smallest else int(rng.choice(fewer)))
    return space.select(counts, rng.random(space.num_units))


def _kept_entries(space: SearchSpace, policy: Policy) -> dict[tuple[str, int], IntArray]:
    """Which entries stay, by tensor name and dimension."""
    keep = np.append(space.keep_mask(policy), True)
    return {(site.parameter, site.dim): np.flatnonzero(keep[site.units]) for site in space.sites}
