import json
from dataclasses import replace

import numpy as np
import pytest

from compsearch.space import Policy, allowed_counts
from compsearch.toy import ToyCost, toy_space


def importance() -> np.ndarray:
    return np.random.default_rng(0).random(toy_space().num_units)


# --- Counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (64, {}, (8, 16, 24, 32, 40, 48, 56, 64)),
        (16, {}, (2, 4, 6, 8, 10, 12, 14, 16)),  # too small for eights: eight steps of two
        (4, {}, (1, 2, 3, 4)),
        (1, {}, (1,)),
        (100, {}, (16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 100)),  # a tenth at least; the whole is always there
        (64, {"min_keep_ratio": 0.5}, (32, 40, 48, 56, 64)),
        (64, {"min_keep_ratio": 1.0}, (64,)),
        (5, {"divisor": 1, "min_keep_ratio": 0.4}, (2, 3, 4, 5)),
        (16, {"width": 8}, tuple(range(2, 17))),  # a unit of eight channels is a multiple of eight already
    ],
)
def test_allowed_counts(size: int, options: dict[str, float], expected: tuple[int, ...]) -> None:
    assert allowed_counts(size, **options) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"divisor": 0}, {"min_keep_ratio": 0.0}, {"min_keep_ratio": 1.1}])
def test_counts_refuse_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        allowed_counts(64, **options)  # type: ignore[arg-type]


def test_nearest_count_rounds_to_an_allowed_one_the_lower_when_equally_near() -> None:
    space = toy_space()
    assert space.groups[0].counts == (2, 4, 6, 8, 10, 12, 14, 16)
    assert [space.nearest_count(0, ratio) for ratio in (0.0, 0.3, 0.3125, 0.32, 1.0)] == [2, 4, 4, 6, 16]
    assert space.nearest_count(0, 1.0, at_most=9) == 8
    assert space.nearest_count(0, 1.0, at_most=1) == 2  # the fewest there are


# --- Space ---------------------------------------------------------------------------------------------------------


def test_units_are_numbered_through_the_groups() -> None:
    space = toy_space()
    assert space.offsets.tolist() == [0, 16, 32, 64, 96, 144, 208, 272, 336]
    assert space.num_units == 336
    assert [group.is_coupled for group in space.groups] == [False, False, True, False, True, False, False, False]


def test_select_keeps_the_most_important_units_of_each_group() -> None:
    space = toy_space()
    scores = importance()
    policy = space.select(space.min_counts, scores)
    assert space.counts(policy).tolist() == space.min_counts.tolist()
    for index, (_, units) in enumerate(policy.kept):
        of_group = scores[space.offsets[index] : space.offsets[index + 1]]
        assert set(units) == set(np.argsort(-of_group)[: len(units)])
        assert list(units) == sorted(units)


def test_select_keeps_the_lower_of_equally_important_units() -> None:
    space = toy_space()
    policy = space.select(space.min_counts, np.ones(space.num_units))
    assert policy.kept[0] == ("conv0", (0, 1))


def test_select_refuses_a_count_that_is_not_offered() -> None:
    space = toy_space()
    counts = space.sizes.copy()
    counts[0] = 3
    with pytest.raises(ValueError, match="but got 3 for group 'conv0'"):
        space.select(counts, importance())
    with pytest.raises(ValueError, match="one count per group"):
        space.select(counts[1:], importance())


def test_keep_mask_marks_the_kept_units() -> None:
    space = toy_space()
    policy = space.select(space.min_counts, importance())
    mask = space.keep_mask(policy)
    assert mask.sum() == space.min_counts.sum()
    assert np.flatnonzero(mask[:16]).tolist() == list(policy.kept[0][1])
    assert space.keep_mask(space.full_policy()).all()


def test_check_names_what_is_wrong_with_a_policy() -> None:
    space = toy_space()
    full = space.full_policy()
    space.check(full)
    first, *rest = full.kept
    for kept, message in [
        (((first[0], ()), *rest), "'conv0' keeps none"),
        ((("stem", (0,)), *rest), "but got group 'stem'"),
        (tuple(rest), "group 'conv0' is missing"),
        (((first[0], (0, 16)), *rest), r"0..15, but got 0,16 for group 'conv0'"),
        (((first[0], (2, 1)), *rest), "must ascend"),
        ((first, *rest, first), "once each"),
        ((*rest, first), "in forward order"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            space.check(replace(full, kept=kept))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="must belong to this network"):
        space.check(replace(full, space="another"))


# --- Policy --------------------------------------------------------------------------------------------------------


def test_policy_goes_to_json_and_back() -> None:
    space = toy_space()
    policy = replace(space.select(space.min_counts, importance()), operations=(("block1", "mbconv3"),))
    text = json.dumps(policy.to_json())
    assert Policy.from_json(json.loads(text)) == policy
    assert hash(Policy.from_json(json.loads(text))) == hash(policy)


def test_policy_writes_ranges() -> None:
    policy = Policy("toy", (("conv0", (0, 1, 2, 5, 7, 8)),))
    assert policy.to_json()["kept"] == {"conv0": "0-2,5,7-8"}
    assert str(policy) == "conv0=6"


@pytest.mark.parametrize("data", [{}, {"space": "x"}, {"space": "x", "kept": {"a": "b-c"}}, {"space": "x", "kept": 3}])
def test_what_is_no_policy_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a policy must be a mapping"):
        Policy.from_json(data)


# --- The toy problem -----------------------------------------------------------------------------------------------


def test_toy_macs_equal_a_count_by_hand() -> None:
    space = toy_space()
    cost_model = ToyCost(space)
    counts = space.sizes.copy()
    counts[2], counts[3] = 16, 8  # conv2 (and the depthwise layer) and conv3
    by_hand = (
        32 * 32 * 9 * (3 * 16 + 16 * 16)  # conv0, conv1
        + 16 * 16 * 9 * (16 * 16 + 16)  # conv2, depthwise
        + 16 * 16 * (16 * 8 + 9 * 8 * 48)  # conv3, conv4
        + 8 * 8 * 9 * (48 * 64 + 64 * 48 + 48 * 64)  # conv5, conv6, conv7
        + 64 * 64
        + 64 * 10
    )
    assert cost_model.costs(counts[None]).tolist() == [by_hand]
    assert cost_model.cost(space.select(counts, importance())) == by_hand
