from types import SimpleNamespace

from compsearch.summary import Latency
from compsearch.timed_trials import time_trials
from compsearch.toy import ToyCost, toy_importance, toy_space
from compsearch.trial import Measurement, Trial


def parts_and_trials(num_trials, failed=()):
    space = toy_space()
    cost_model = ToyCost(space)
    scores = toy_importance(space).scores()
    trials = []
    for number in range(num_trials):
        ratio = 0.2 + 0.6 * number / num_trials
        policy = space.select([space.nearest_count(index, ratio) for index in range(len(space.groups))], scores)
        measurement = Measurement("search", 10, ratio, ratio, 1.0)
        objective = None if number in failed else cost_model.cost(policy)
        trials.append(Trial(policy, measurement, objective, cost_model.cost(policy)))
    timed = []

    class Bench:
        def dense(self):
            return "dense"

        def plain(self, policy):
            return policy

        def latencies(self, networks):
            timed.extend(networks)
            return {name: Latency(2.0, 1.0, 3.0, "fake", 5, 0.5, 0.4, 0.6) for name in networks}

    return SimpleNamespace(workbench=Bench(), cost_models={"macs": cost_model}, space=space), trials, timed


def test_the_best_and_a_spread_over_the_costs_are_timed_beside_the_dense_network():
    parts, trials, timed = parts_and_trials(100)
    found = time_trials(parts, trials, most=8)["trials"]
    picked = [row["trial"] for row in found]
    assert timed[0] == "dense"
    assert len(picked) <= 8
    assert picked == sorted(set(picked))
    costs = [trials[index].cost_ratio for index in picked]
    assert min(costs) == min(trial.cost_ratio for trial in trials)
    assert max(trials[index].objective for index in picked) == max(trial.objective for trial in trials)
    assert {row["ratio"] for row in found} == {0.5}


def test_one_policy_is_timed_once_and_failed_trials_not_at_all():
    parts, trials, _ = parts_and_trials(4, failed=[1])
    found = time_trials(parts, [*trials, *trials], most=16)["trials"]
    policies = [trials[row["trial"]].policy for row in found]
    assert len(set(policies)) == len(policies)
    assert trials[1].policy not in policies


def test_nothing_is_timed_where_nothing_is_asked_for():
    parts, trials, timed = parts_and_trials(4)
    assert time_trials(parts, trials, most=0) == {"trials": []}
    assert timed == []
