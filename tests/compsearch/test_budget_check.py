"""A budget that the search could only predict holds when it is measured, or the run says by how much not."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from compsearch.budget import Budget
from compsearch.budget_check import within_budget
from compsearch.space import Block, Operation
from compsearch.summary import Latency
from compsearch.toy import ToyCost, toy_importance, toy_space
from compsearch.trial import Measurement, Trial

CONFIG = {"finalist": {"repairs": 5, "latency_margin": 0.01}, "budget": {"limit": None}}


class Bench:
    """Measures `truth(counts)`; a network is its policy."""

    def __init__(self, space, truth):
        self.space, self.truth, self.num_measured = space, truth, 0

    def dense(self):
        return self.space.full_policy()

    def compress(self, policy):
        return policy

    plain = compress

    def latencies(self, networks):
        self.num_measured += 1
        times = {name: self.truth(self.space.counts(policy)) for name, policy in networks.items()}
        dense = next(iter(times.values()))
        return {
            name: Latency(time, time, time, "fake", 1, time / dense, time / dense, time / dense)
            for name, time in times.items()
        }


def parts_of(truth, *, predicted=True, searcher=None):
    space = toy_space()
    cost_model = ToyCost(space)
    cost_model.is_predicted = predicted
    dense = cost_model.cost(space.full_policy())
    return SimpleNamespace(
        space=space,
        cost_model=cost_model,
        importance=toy_importance(space),
        budget=Budget(cost_model.resource, 0.5 * dense, dense),
        workbench=Bench(space, truth),
        searcher=searcher or object(),
    )


def trial_at_budget(parts, genome=None):
    space = parts.space
    for t in np.linspace(1, 0, 200):
        counts = [space.nearest_count(index, t) for index in range(len(space.groups))]
        policy = space.select(counts, parts.importance.scores())
        if parts.budget.allows(parts.cost_model.cost(policy)):
            break
    measurement = Measurement("search", 10, 0.5, 0.5, 1.0)
    return Trial(policy, measurement, 0.5, parts.cost_model.cost(policy) / parts.budget.dense, genome=genome or {})


def optimistic(parts, factor):
    """What is measured falls less than what was predicted."""
    dense = parts.budget.dense

    def truth(counts):
        predicted = float(parts.cost_model.costs(counts[None])[0])
        return predicted if predicted == dense else predicted * factor

    return truth


def test_a_policy_that_measures_over_the_budget_is_cut_down_until_it_does_not():
    parts = parts_of(None)
    parts.workbench.truth = optimistic(parts, 1.4)
    trial = trial_at_budget(parts)
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert checked.measured <= 0.5
    assert checked.num_repairs >= 1
    space = parts.space
    assert (space.counts(checked.policy) <= space.counts(trial.policy)).all()
    assert not (space.keep_mask(checked.policy) & ~space.keep_mask(trial.policy)).any()
    assert checked.network == checked.policy


def test_the_repair_does_not_cut_more_than_it_must():
    parts = parts_of(None)
    parts.workbench.truth = optimistic(parts, 1.4)
    trial = trial_at_budget(parts)
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert checked.measured > 0.3


def test_a_policy_within_the_budget_stays():
    parts = parts_of(None)
    parts.workbench.truth = optimistic(parts, 0.9)
    trial = trial_at_budget(parts)
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert (checked.policy, checked.num_repairs) == (trial.policy, 0)
    assert parts.workbench.num_measured == 1


def test_a_network_that_does_not_get_faster_is_given_up_on_and_said_so(caplog):
    parts = parts_of(lambda counts: 1.0)
    trial = trial_at_budget(parts)
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert checked.measured == 1
    assert "the budget is missed: measured 1.0000, not 0.5000" in caplog.text


def test_exact_costs_are_not_measured():
    parts = parts_of(None, predicted=False)
    trial = trial_at_budget(parts)
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert (checked.policy, checked.measured) == (trial.policy, None)
    assert parts.workbench.num_measured == 0


def test_an_absolute_limit_is_checked_in_milliseconds():
    parts = parts_of(None)
    dense = parts.budget.dense
    parts.workbench.truth = lambda counts: 2 * float(parts.cost_model.costs(counts[None])[0])  # all is twice as slow
    trial = trial_at_budget(parts)
    config = {**CONFIG, "budget": {"limit": 0.5 * dense}}
    checked = within_budget(config, parts, trial, trial.policy)
    assert parts.workbench.truth(parts.space.counts(checked.policy)) <= 0.5 * dense
    assert checked.num_repairs >= 1


def test_a_familys_network_is_repaired_by_cutting_its_own_ranking_further():
    class Family:
        num_steps = 1

        def step(self):
            raise AssertionError

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def family(self, trial, budgets):
            [budget] = budgets
            asked.append(budget.cost_ratio)
            counts = parts.space.min_counts
            return [Trial(parts.space.select(counts, parts.importance.scores()), trial.measurement, 0.1, 0.1)]

    asked = []
    parts = parts_of(None, searcher=Family())
    parts.workbench.truth = optimistic(parts, 1.4)
    trial = trial_at_budget(parts, genome={"alpha": {"layer": 1.0}})
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert asked[0] == pytest.approx(trial.cost_ratio * 0.495 / (1.4 * trial.cost_ratio))
    assert (parts.space.counts(checked.policy) == parts.space.min_counts).all()


def test_a_cut_that_was_too_much_is_taken_back_half_of_the_way():
    parts = parts_of(None)
    # A step in what is measured: the first repair asks for less than is needed.
    dense = parts.budget.dense
    trial = trial_at_budget(parts)
    first = parts.cost_model.cost(trial.policy)

    def truth(counts):
        cost = float(parts.cost_model.costs(counts[None])[0])
        return dense if cost == dense else cost * (1.6 if cost == first else 1.0)

    parts.workbench.truth = truth
    checked = within_budget(CONFIG, parts, trial, trial.policy)
    assert checked.num_repairs > 1
    one = within_budget({**CONFIG, "finalist": {"repairs": 1, "latency_margin": 0.01}}, parts, trial, trial.policy)
    assert parts.cost_model.cost(checked.policy) > parts.cost_model.cost(one.policy)
    assert checked.measured <= 0.5


KEEP_OR_SKIP = (Operation("keep"), Operation("zero"))


def with_blocks(space, *, groups=True):
    """`space` and six blocks that may be skipped, each a twelfth of the costs; the rest grows with the first group."""
    blocks = tuple(Block(f"b{index}", KEEP_OR_SKIP) for index in range(6))
    return dataclasses.replace(space, groups=space.groups if groups else (), blocks=blocks)


class BlockCost:
    resource = "latency_ms"
    is_predicted = True

    def __init__(self, space):
        self.space = space

    def cost(self, policy):
        return float(self.costs(self.space.choices(policy)[None])[0])

    def costs(self, choices):
        num_groups = len(self.space.groups)
        rest = choices[:, 0] / self.space.sizes[0] if num_groups else np.ones(len(choices))
        operations = choices[:, num_groups:]
        kept = (operations == 0).sum(axis=1) if operations.shape[1] else 6
        return 6 * rest + kept


@pytest.mark.parametrize("groups", [True, False])
def test_a_repair_keeps_the_blocks_that_the_search_chose(groups):
    space = with_blocks(toy_space(), groups=groups)
    cost_model = BlockCost(space)
    scores = np.zeros(space.num_units)
    chosen = [1, 0, 1, 0, 0, 0]
    trial_policy = space.select(space.sizes, scores, chosen)
    parts = SimpleNamespace(
        space=space,
        cost_model=cost_model,
        importance=SimpleNamespace(scores=lambda: scores),
        budget=Budget("latency_ms", 10.5, 12.0),
        searcher=object(),
    )

    def truth(policy):
        cost = cost_model.cost(policy)
        return cost if cost == 12.0 else 1.15 * cost

    parts.workbench = Bench(space, None)
    parts.workbench.latencies = lambda networks: {
        name: Latency(truth(p), truth(p), truth(p), "fake", 1, truth(p) / 12, truth(p) / 12, truth(p) / 12)
        for name, p in networks.items()
    }
    measurement = Measurement("search", 10, 0.5, 0.5, 1.0)
    trial = Trial(trial_policy, measurement, 0.5, cost_model.cost(trial_policy) / 12.0)
    checked = within_budget(CONFIG, parts, trial, trial_policy)
    assert truth(checked.policy) <= 10.5
    operations = space.operations(checked.policy)
    assert (operations >= chosen).all(), "what was skipped stays skipped"
    if groups:
        assert (operations == chosen).all(), "widths go first"
    else:
        assert operations.sum() == 3
