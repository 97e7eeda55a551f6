import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from backends.evaluate import NetworkEvaluator
from backends.macs import MacsCost, ParamsCost
from backends.recovery import NoRecovery
from backends.surgery import ChannelSurgery, extract
from backends.training import measure
from compsearch.space import Policy

CPU = torch.device("cpu")


class Counting:
    def __init__(self) -> None:
        self.seen: Counter[Policy] = Counter()

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        self.seen[policy] += 1


def evaluator(tiny: SimpleNamespace, **changes: Any) -> NetworkEvaluator:
    costs = [MacsCost(tiny.space), ParamsCost(tiny.space)]
    given = {"model": tiny.model, "space": tiny.space, "split": tiny.search, "cost_models": costs, "device": CPU}
    given["surgery"] = ChannelSurgery()
    options = {"recovery": NoRecovery(), "batch_size": 16, "precision": "float32", "num_workers": 2}
    return NetworkEvaluator(**(given | options | changes))


def policies(tiny: SimpleNamespace) -> list[Policy]:
    counts = [[max(1, group.size * share // 4) for group in tiny.space.groups] for share in (1, 2, 3, 4)]
    return [tiny.space.select(count, tiny.importance) for count in counts]


def test_scores_equal_a_plain_evaluation_of_the_extracted_network(tiny: SimpleNamespace) -> None:
    found = evaluator(tiny).measure(policies(tiny))
    for policy, measurement in zip(policies(tiny), found, strict=True):
        plain = measure(extract(tiny.model, tiny.space, policy), tiny.search, device=CPU, batch_size=7)
        assert measurement.accuracy == plain.accuracy
        assert measurement.top5 == plain.top5
        assert measurement.loss == pytest.approx(plain.loss, rel=1e-4)
        assert measurement.costs["macs"] == MacsCost(tiny.space).cost(policy)
        assert measurement.costs["params"] == ParamsCost(tiny.space).cost(policy)


def test_bfloat16_is_used_only_where_it_predicts_the_same(tiny: SimpleNamespace) -> None:
    found = evaluator(tiny, precision="auto").measure(policies(tiny))
    for policy, measurement in zip(policies(tiny), found, strict=True):
        plain = measure(extract(tiny.model, tiny.space, policy), tiny.search, device=CPU, batch_size=40)
        assert abs(measurement.accuracy - plain.accuracy) <= 1 / 40


def test_answers_come_in_the_order_of_the_policies_and_each_is_measured_once(tiny: SimpleNamespace) -> None:
    recovery = Counting()
    scorer = evaluator(tiny, recovery=recovery)
    several = policies(tiny)
    before = scorer.measure(several)
    seen = Counter(recovery.seen)
    again = scorer.measure([several[2], several[0], several[2]])
    assert again == [before[2], before[0], before[2]]
    assert recovery.seen == seen


def test_the_number_of_workers_does_not_change_a_score(tiny: SimpleNamespace) -> None:
    one, two = (evaluator(tiny, num_workers=count).measure(policies(tiny)) for count in (1, 2))
    assert one == two


def test_a_network_that_gives_nan_is_measured_as_nan(tiny: SimpleNamespace) -> None:
    def spoil(network: nn.Module, policy: Policy) -> None:
        if policy == tiny.half:
            with torch.no_grad():
                network.linear.weight.fill_(float("nan"))

    fine, spoiled = evaluator(tiny, recovery=spoil).measure([policies(tiny)[3], tiny.half])
    assert fine.is_finite
    assert math.isnan(spoiled.accuracy)
    assert math.isnan(spoiled.loss)
    assert not spoiled.is_finite


def test_the_dense_network_and_the_global_generator_stay_as_they_are(tiny: SimpleNamespace) -> None:
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    rng = torch.get_rng_state()
    evaluator(tiny, precision="auto").measure(policies(tiny))
    assert all(torch.equal(before[key], value) for key, value in tiny.model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_a_wrong_precision_is_refused(tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"evaluator.precision"):
        evaluator(tiny, precision="float8")
