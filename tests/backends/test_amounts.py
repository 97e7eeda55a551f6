"""Numbers of networks that widths and operations change."""

import itertools

import numpy as np
import pytest
import torch

from backends.amounts import Affine, Amounts, Change
from compsearch.candidates import Candidates
from compsearch.toy import toy_space


@pytest.fixture
def amounts():
    """Two numbers of a space of one group and one block of three operations, of which the second costs half."""
    dense = Affine(np.array([10.0, 1.0]), np.array([[2.0, 0.0]]))
    changes = [
        Change(0, 1, np.array([0]), Affine(np.array([-5.0]), np.array([[-1.0]]))),
        Change(0, 2, np.array([0, 1]), Affine(np.array([-10.0, -1.0]), np.array([[-2.0, 0.0]]))),
    ]
    return Amounts(dense, changes, num_blocks=1)


def test_operations_change_what_counts_give(amounts):
    choices = np.array([[3, 0], [3, 1], [3, 2], [5, 1]])
    assert amounts(choices).tolist() == [[16, 1], [8, 1], [0, 0], [10, 1]]


def test_operations_left_out_are_the_dense_networks(amounts):
    assert amounts(np.array([[3]])).tolist() == [[16, 1]]


def test_sums_select_what_changes_with_them(amounts):
    choices = np.array([[3, 0], [3, 1], [3, 2]])
    assert amounts.sum()(choices).tolist() == [[17], [9], [0]]
    assert amounts.sum([False, True])(choices).tolist() == [[1], [1], [0]]
    assert (amounts + amounts).sum()(choices).tolist() == [[34], [18], [0]]


def test_the_mean_is_that_of_all_networks_weighed_by_their_probability(amounts):
    values = np.array([[4, 2, 1], [0, 1, 2]])
    candidates = Candidates(toy_space(), values, ("group", "block"), (("4", "2", "1"), ("a", "b", "c")))
    probabilities = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]], dtype=torch.float64)
    mean = sum(
        float(probabilities[0, a] * probabilities[1, b]) * amounts(np.array([[values[0, a], values[1, b]]]))[0]
        for a, b in itertools.product(range(3), repeat=2)
    )
    assert amounts.expected(candidates, probabilities).tolist() == pytest.approx(mean.tolist())


def test_they_survive_json(amounts):
    choices = np.array([[3, 0], [3, 1], [3, 2]])
    for each in (amounts, amounts.sum(), Amounts(amounts.dense)):
        width = 1 + each.num_blocks
        assert Amounts.from_json(each.to_json())(choices[:, :width]).tolist() == each(choices[:, :width]).tolist()


def test_what_was_kept_before_there_were_blocks_is_read():
    assert Amounts.from_json([10.0, [2.0, 3.0]])(np.array([[1, 1]])).tolist() == [[15.0]]


@pytest.mark.parametrize("shape", [(2,), (4, 3), (4, 0)])
def test_misshapen_choices_are_refused(amounts, shape):
    with pytest.raises(ValueError, match=r"counts must be \[num_policies, 1\], but got"):
        amounts(np.zeros(shape))
