"""The comparison in sentences: who is ahead where, by how much, and whether that is more than chance between seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.contest import Contest, Lead, Standing, contests
from compsearch.comparison.estimate import NEGLIGIBLE, mean_and_spread
from compsearch.report.captions import counted
from compsearch.report.style import RESOURCE_LABELS


def verdicts(comparison: Comparison) -> list[str]:
    """One sentence per facet, budget and stage, of test accuracies.

    Each says which series is ahead and by how many points of the next, whether that is beyond the seeds' spread (the
    difference of the means > sqrt(s1² + s2²)), and how the best baseline (uniform, random, global_magnitude) stands to
    the search methods.
    """
    found = verdicts_by_facet(comparison)
    return [f"{facet}, {sentence}" for facet, sentences in found.items() for sentence in sentences]


def verdicts_by_facet(comparison: Comparison) -> dict[str, list[str]]:
    """The same, for each facet without its name."""
    found: dict[str, list[str]] = {}
    for contest in contests(comparison.networks):
        found.setdefault(contest.facet, []).append(verdict(contest))
    return found


def verdict(contest: Contest) -> str:
    """The sentence on one contest, which doesn't name its facet."""
    best, runner_up = contest.best, contest.runner_up
    place = f"{budget_text(contest.resource, contest.budget)}, {contest.stage} fine-tuning"
    if runner_up is None:
        return f"{place}: only {_name(best)} has been run, {_result(best)}."
    lead = contest.lead(best, runner_up)
    if lead.difference <= NEGLIGIBLE:
        level = [one for one in contest.standings if contest.lead(best, one).difference <= NEGLIGIBLE]
        names = [_name(one) for one in level]
        ahead = f"{', '.join(names[:-1])} and {names[-1]} are level, {' and '.join(map(_result, level))}"
    else:
        ahead = (
            f"{_name(best)} is ahead with {_result(best)}, {_points(lead.difference)} over {_name(runner_up)} with "
            f"{_result(runner_up)}, {_beyond(lead)}"
        )
    return f"{place}: {'; '.join(filter(None, [ahead, _of_baselines(contest)]))}."


def budget_text(resource: str, budget: float) -> str:
    """``budget 0.5 of FLOPs (MACs)``."""
    return "no budget" if math.isnan(budget) else f"budget {budget:g} of {RESOURCE_LABELS.get(resource, resource)}"


def _of_baselines(contest: Contest) -> str:
    """How search methods and baselines stand to each other, where the sentence so far doesn't say it."""
    method, baseline = contest.best_method, contest.best_baseline
    if method is None:
        return "no search method has been run there"
    if baseline is None:
        return "no baseline has been run there"
    at_least_as_good = [
        _name(standing)
        for standing in contest.standings
        if standing.is_baseline and standing.accuracy.mean >= method.accuracy.mean - NEGLIGIBLE
    ]
    if at_least_as_good:
        names = _listed(at_least_as_good)
        verb = "a baseline, is" if len(at_least_as_good) == 1 else "baselines, are"
        behind = contest.lead(baseline, method)
        rest = ""
        if method is not contest.runner_up and behind.difference > NEGLIGIBLE:
            rest = f" ({_name(method)}, the best of them, has {_result(method)})"
        return f"{names}, {verb} at least as good as every search method{rest}"
    if baseline is contest.runner_up:
        return f"{_name(baseline)} is a baseline"
    lead = contest.lead(method, baseline)
    text = f"{_points(lead.difference)} behind, {_beyond(lead)}"
    return f"the best baseline, {_name(baseline)} with {_result(baseline)}, is {text}"


def _name(standing: Standing) -> str:
    """The series, in quotation marks where a sentence would take its commas for its own."""
    return f"“{standing.series}”" if "," in standing.series else standing.series


def _listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and 4 others``."""
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _result(standing: Standing) -> str:
    """``77.2% ± 0.4 (3 seeds, at 0.298)``."""
    accuracy = mean_and_spread(standing.accuracy, scale=100.0).replace(" ±", "% ±", 1)
    accuracy = accuracy if "%" in accuracy else f"{accuracy}%"
    achieved = "" if math.isnan(standing.cost_ratio) else f", at {standing.cost_ratio:.3f}"
    return f"{accuracy} ({counted(standing.accuracy.num, 'seed', 'seeds')}{achieved})"


def _points(difference: float) -> str:
    return f"{100 * difference:.2f} points"


def _beyond(lead: Lead) -> str:
    if math.isnan(lead.spread):
        return f"which one seed cannot tell from chance{_paired(lead)}"
    if lead.is_beyond_spread is None:
        return f"which seeds that do not differ at all cannot tell from chance{_paired(lead)}"
    spread = f"the seeds' spread of {100 * lead.spread:.2f}"
    return f"{'more than' if lead.is_beyond_spread else 'within'} {spread}{_paired(lead)}"


def _paired(lead: Lead) -> str:
    """What the seeds that both have say, where they are not the same."""
    if lead.paired is None:
        return ""
    if not lead.paired.num:
        return ", on other seeds"
    shared = counted(lead.paired.num, "seed", "seeds")
    return f" (not on the same seeds: {100 * lead.paired.mean:+.2f} on the {shared} that both have)"
