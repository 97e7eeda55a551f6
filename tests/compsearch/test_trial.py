import math

import pytest

from compsearch.toy import toy_space
from compsearch.trial import Measurement, Trial, best_trial, scored_trial

POLICY = toy_space().full_policy()
GOOD = Measurement("search", 10, accuracy=0.5, top5=0.9, loss=1.0)


def trial(objective: float | None) -> Trial:
    return Trial(POLICY, GOOD, objective, 1.0)


def test_a_finite_measurement_makes_a_trial_with_its_objective() -> None:
    assert scored_trial(POLICY, GOOD, objective=0.4, cost_ratio=0.5) == Trial(POLICY, GOOD, 0.4, 0.5, "")


@pytest.mark.parametrize(("accuracy", "loss"), [(math.nan, 1.0), (0.5, math.inf), (0.5, math.nan)])
def test_a_measurement_that_is_not_finite_makes_a_failed_trial(accuracy: float, loss: float) -> None:
    measurement = Measurement("search", 10, accuracy, 0.9, loss)
    failed = scored_trial(POLICY, measurement, objective=0.4, cost_ratio=0.5)
    assert failed.objective is None
    assert failed.failure == f"not finite on the search split: accuracy={accuracy:.4g}, loss={loss:.4g}"


def test_best_is_the_earliest_of_the_highest_and_never_a_failed_one() -> None:
    trials = [trial(None), trial(0.2), trial(0.7), trial(0.7), trial(-1.0)]
    assert best_trial(trials) is trials[2]
    assert best_trial([trial(None)]) is None
    assert best_trial([]) is None
