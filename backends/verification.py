"""Whether a forward, run again on fewer channels, does the same with them.

Labels say what a network did once. A forward may still name sizes (``x.view(-1, 400)``, a hidden width kept in an
attribute), so groups are tried: channels scattered over every group are removed, and the network that is left runs on
the *original* labels. It must run, return the same shapes and tie no channels that the dense network did not tie; then
it is exact by construction, whatever the weights. Groups found guilty are frozen with what happened as the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backends import forwards
from backends.draft import Draft, DraftGroup
from backends.forwards import Shapes, Subject
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
    """Why a try-out failed, and the groups to suspect first."""

    reason: str
    suspects: list[DraftGroup]


class Verifier:
    """Tries groups of a draft out; `runs` are the dense network's, by whether it was in training mode."""

    def __init__(self, draft: Draft, subject: Subject, runs: Mapping[bool, Run]) -> None:
        self._draft = draft
        self._subject = subject
        self._runs = runs

    def settle(self) -> None:
        """Freezes the groups of the draft whose channels the forward depends on."""
        for smallest in (True, False):
            while self._draft.groups:
                failure = self._try(self._draft.groups, smallest=smallest)
                if failure is None:
                    break
                guilty = [group for group in failure.suspects if self._try([group], smallest=smallest)]
                self._draft.freeze(guilty or [self._bisect(smallest=smallest)], failure.reason)

    def _bisect(self, *, smallest: bool) -> DraftGroup:
        """The last group of the shortest leading run of groups that fails together."""
        low, high = 0, len(self._draft.groups)
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(self._draft.groups[:middle], smallest=smallest):
                high = middle
            else:
                low = middle
        return self._draft.groups[high - 1]

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
            if not all(map(torch.equal, output, run.output)):
                return Failure("the output's order depends on it", [])
            if shapes == run.shapes and smallest and (space.min_counts < 2).any():
                lowest = extract(self._subject.module, space, space.select(space.min_counts, np.zeros(space.num_units)))
                shapes = forwards.output_shapes(lowest.train(training), inputs)
        except Conflict as conflict:
            return self._blame(conflict)
        except Exception as error:  # a forward may raise anything when it meets sizes it was not written for
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            place = "" if tracer.where == "the forward" else f", in {tracer.where}"
            reason = f"the forward fails on fewer channels{place}: {message[:120]}"
            return Failure(reason, self._draft.owners(tracer.recent()))
        return Failure("the output's shape depends on it", []) if shapes != run.shapes else None

    def _blame(self, conflict: Conflict) -> Failure:
        return Failure(f"its number or position matters: {conflict}", self._draft.owners(conflict.roots))


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
