import re
from typing import Any

import numpy as np
import pytest

from compsearch.importance import LayerImportance
from compsearch.space import FloatArray

#: Two layers tied in a chain: units 0 and 1 are in both, unit 2 in the first and unit 3 in the second alone.
CHAIN: dict[str, Any] = {
    "layers": ("first", "second"),
    "layer_index": np.array([0, 0, 0, 1, 1, 1]),
    "units": np.array([0, 1, 2, 0, 1, 3]),
    "values": np.array([3.0, 1.0, 5.0, 1.0, 2.0, 6.0]),
    "num_units": 4,
}


def chain(reduction: str = "sum", **changes: Any) -> LayerImportance:
    return LayerImportance(**(CHAIN | changes), reduction=reduction)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", [4.0, 3.0, 5.0, 6.0]), ("mean", [2.0, 1.5, 5.0, 6.0]), ("max", [3.0, 2.0, 5.0, 6.0])],
)
def test_a_coupled_units_entries_become_one_score(reduction: str, expected: list[float]) -> None:
    assert chain(reduction).scores().tolist() == expected


@pytest.mark.parametrize(
    ("reduction", "expected"),
    # first: 2·v + 10 = 16, 12, 20 for units 0, 1, 2; second: 0.5·v - 1 = -0.5, 0, 2 for units 0, 1, 3.
    [("sum", [15.5, 12.0, 20.0, 2.0]), ("mean", [7.75, 6.0, 20.0, 2.0]), ("max", [16.0, 12.0, 20.0, 2.0])],
)
def test_alpha_and_kappa_of_each_layer_apply_before_the_reduction(reduction: str, expected: list[float]) -> None:
    scores = chain(reduction).scores(alpha=np.array([2.0, 0.5]), kappa=np.array([10.0, -1.0]))
    assert scores.tolist() == expected


def test_alpha_alone_scales_and_kappa_alone_shifts() -> None:
    assert chain().scores(alpha=np.array([2.0, 1.0])).tolist() == [7.0, 4.0, 10.0, 6.0]
    assert chain().scores(kappa=np.array([0.0, 1.0])).tolist() == [5.0, 4.0, 5.0, 7.0]


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_identity_gives_the_plain_scores_to_the_bit(reduction: str) -> None:
    importance = chain(reduction, values=np.random.default_rng(0).random(6))
    assert np.array_equal(importance.scores(alpha=np.ones(2), kappa=np.zeros(2)), importance.scores())


def test_the_largest_of_negative_scores_is_negative() -> None:
    assert chain("max", values=-CHAIN["values"]).scores().tolist() == [-1.0, -1.0, -5.0, -6.0]


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_the_order_of_entries_does_not_matter(reduction: str) -> None:
    order = np.array([5, 2, 0, 4, 1, 3])
    shuffled = chain(reduction, **{name: CHAIN[name][order] for name in ("layer_index", "units", "values")})
    affine = {"alpha": np.array([2.0, 0.5]), "kappa": np.array([10.0, -1.0])}
    assert shuffled.scores(**affine).tolist() == chain(reduction).scores(**affine).tolist()


def test_scoring_leaves_the_values_as_they_were() -> None:
    values = CHAIN["values"].copy()
    chain(values=values).scores(alpha=np.array([2.0, 0.5]), kappa=np.array([10.0, -1.0]))
    assert np.array_equal(values, CHAIN["values"])


def test_stds_are_those_of_each_layers_values() -> None:
    # first: 3, 1, 5 around 3, squares 0, 4, 4; second: 11, 12, 16 around 13, squares 4, 1, 9.
    assert chain(values=np.array([3.0, 1.0, 5.0, 11.0, 12.0, 16.0])).stds == pytest.approx(
        [(8 / 3) ** 0.5, (14 / 3) ** 0.5]
    )


def test_stds_do_not_depend_on_the_size_of_the_mean() -> None:
    assert chain(values=CHAIN["values"] + 1e6).stds == pytest.approx(chain().stds)


@pytest.mark.parametrize(
    ("reduction", "changes", "message"),
    [
        ("median", {}, "`importance.reduction` must be one of sum, mean, max, but got 'median'"),
        ("sum", {"num_units": 6}, "every unit must have an importance, but 2 have none"),
        ("sum", {"units": np.array([0, 1, 2, 0, 1, 1])}, "every unit must have an importance, but 1 have none"),
        ("sum", {"values": np.array([3.0, 1.0, np.nan, 1.0, 2.0, 6.0])}, "an importance must be finite"),
        ("sum", {"values": np.array([3.0, 1.0, 5.0, 1.0, 2.0, np.inf])}, "an importance must be finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(reduction: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        chain(reduction, **changes)
    assert "\n" not in str(raised.value)


def ranks(scores: FloatArray) -> list[int]:
    return np.argsort(scores, kind="stable").tolist()


def test_a_positive_alpha_keeps_the_order_of_an_uncoupled_layer_and_can_change_a_coupled_ones() -> None:
    # Units 0 and 1 are made by both layers, 2 and 3 by the third alone.
    importance = LayerImportance(
        layers=("first", "second", "third"),
        layer_index=np.array([0, 0, 1, 1, 2, 2]),
        units=np.array([0, 1, 0, 1, 2, 3]),
        values=np.array([3.0, 1.0, 1.0, 2.0, 1.0, 4.0]),
        num_units=4,
        reduction="sum",
    )
    assert importance.scores().tolist() == [4.0, 3.0, 1.0, 4.0]
    changed = importance.scores(alpha=np.array([1.0, 3.0, 0.01]), kappa=np.array([0.0, 0.0, -9.0]))
    assert changed[:2].tolist() == [6.0, 7.0]  # 3 + 3·1 and 1 + 3·2: the other way round
    assert ranks(changed[2:]) == ranks(importance.scores()[2:]) == [0, 1]
