"""Whether a forward, run again on fewer channels, does the same with them.

Labels say what a network did once. A forward may still name sizes (``x.view(-1, 400)``, a hidden width kept in an
attribute), so groups are tried: channels scattered over every group are removed, and the network that is left runs on
the *original* labels. It must run, return the same shapes and tie no channels that the dense network did not tie; then
it is exact by construction, whatever the weights. Groups found guilty are frozen with what happened as the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends import forwards
from backends.draft import Draft, DraftGroup
from backends.forwards import Subject
from backends.labels import Conflict
from backends.surgery import extract
from compsearch.space import Policy, SearchSpace


@dataclass(frozen=True)
class Failure:
    """Why a try-out failed, and the groups to suspect first."""

    reason: str
    suspects: list[DraftGroup]


def settle(draft: Draft, subject: Subject, shapes: list[tuple[int, ...]]) -> None:
    """Freezes the groups of `draft` whose channels the forward depends on; `shapes` are what the dense network returns."""
    for smallest in (True, False):
        while draft.groups:
            failure = _try(draft, subject, draft.groups, shapes, smallest=smallest)
            if failure is None:
                break
            guilty = [group for group in failure.suspects if _try(draft, subject, [group], shapes, smallest=smallest)]
            if not guilty:
                guilty = [_bisect(draft, subject, shapes, smallest=smallest)]
            draft.freeze(guilty, failure.reason)


def _bisect(draft: Draft, subject: Subject, shapes: list[tuple[int, ...]], *, smallest: bool) -> DraftGroup:
    """The last group of the shortest leading run of groups that fails together."""
    low, high = 0, len(draft.groups)
    while high - low > 1:
        middle = (low + high) // 2
        if _try(draft, subject, draft.groups[:middle], shapes, smallest=smallest):
            high = middle
        else:
            low = middle
    return draft.groups[high - 1]


def _try(
    draft: Draft, subject: Subject, groups: Sequence[DraftGroup], shapes: list[tuple[int, ...]], *, smallest: bool
) -> Failure | None:
    """Removes channels of `groups` and follows what is left; with `smallest`, also runs at the fewest channels."""
    space = draft.space(groups)
    policy = _scattered(space, smallest=smallest)
    draft.labels.seal(draft.live(groups))
    follower = None
    with forwards.quietly():
        try:
            module = extract(subject.module, space, policy)
            follower = forwards.follower(module, draft.labels, kept_entries(space, policy))
            returned = forwards.follow(follower, module, subject)
            if returned == shapes and smallest and (space.min_counts < 2).any():
                lowest = extract(subject.module, space, space.select(space.min_counts, np.zeros(space.num_units)))
                returned = forwards.output_shapes(subject, lowest)
        except Conflict as conflict:
            return Failure(f"its number or position matters: {conflict}", draft.owners(conflict.roots))
        except Exception as error:  # a forward may raise anything when it meets sizes it was not written for
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            met = follower.recent() if follower else np.zeros(0, dtype=np.int64)
            return Failure(f"the forward fails on fewer channels: {message[:120]}", draft.owners(met))
    if returned != shapes:
        return Failure("the output's shape depends on it", [])
    return None


def _scattered(space: SearchSpace, *, smallest: bool) -> Policy:
    """Channels spread over each group: as few as allowed but at least two (one would broadcast), or some number."""
    rng = np.random.default_rng(0)
    counts = []
    for group in space.groups:
        fewer = [count for count in group.counts[:-1] if count >= 2] or [group.counts[0]]
        counts.append(fewer[0] if smallest else int(rng.choice(fewer)))
    return space.select(counts, rng.random(space.num_units))


def kept_entries(
    space: SearchSpace, policy: Policy
) -> dict[tuple[str, int], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Which entries stay, by tensor name and dimension."""
    keep = np.append(space.keep_mask(policy), True)
    return {(site.parameter, site.dim): np.flatnonzero(keep[site.units]) for site in space.sites}
