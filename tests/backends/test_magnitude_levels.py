import pytest
import torch
from torch import Tensor

from backends.magnitude_levels import check_block, entry_levels, kept_entries, matrix_shape, num_levels_of

BLOCKS = [(1, 1), (4, 1), (1, 4), (16, 1), (3, 5), (2, 2)]
SHAPES = [(16, 3, 3, 3), (16, 16, 3, 3), (10, 64), (7, 5), (1, 9), (8, 1, 3, 3)]


def random_weight(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_levels_hold_exactly_as_many_entries_as_shapes_say(
    shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    size = num_levels_of(shape, block, 64)
    kept = kept_entries(shape, block, size)
    levels = entry_levels(random_weight(shape), block, size)
    assert levels.shape == shape
    assert kept[0] == 0
    assert kept[-1] == levels.numel()
    assert [int((levels < count).sum()) for count in range(size + 1)] == kept.tolist()
    assert (kept[1:] > kept[:-1]).all()  # no level is empty


def test_single_entries_go_by_magnitude() -> None:
    weight = torch.tensor([[0.1, -0.9, 0.5], [-0.3, 0.7, 0.2]])
    assert entry_levels(weight, (1, 1), 6).tolist() == [[5, 0, 2], [3, 1, 4]]
    # Three levels of two entries each.
    assert entry_levels(weight, (1, 1), 3).tolist() == [[2, 0, 1], [1, 0, 2]]


def test_of_equal_entries_the_first_is_the_larger() -> None:
    assert entry_levels(torch.ones(2, 3), (1, 1), 6).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert entry_levels(torch.ones(4, 2), (2, 1), 4).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_blocks_go_whole_by_their_mean() -> None:
    weight = torch.tensor([[1.0, 9.0, 4.0, 4.0], [1.0, 1.0, 4.0, 4.0]])
    # Means by (2, 1): 1, 5, 4, 4; by (1, 2): 5, 4 above and 1, 4 below.
    assert entry_levels(weight, (2, 1), 4).tolist() == [[3, 0, 1, 2]] * 2
    assert entry_levels(weight, (1, 2), 4).tolist() == [[0, 0, 1, 1], [3, 3, 2, 2]]


def test_blocks_over_the_edge_are_ranked_among_their_like() -> None:
    # (2, 2) on 3×3: one whole block, one of two rows, one of two columns, the corner; each is the only one of its kind.
    assert num_levels_of((3, 3), (2, 2), 64) == 1
    weight = torch.arange(10.0).view(5, 2)
    assert num_levels_of((5, 2), (2, 1), 64) == 4
    levels = entry_levels(weight, (2, 1), 4)
    assert levels[:4].tolist() == [[3, 2], [3, 2], [1, 0], [1, 0]]
    # The two of the last row have four levels between them: the larger is kept from 2 of 4 on, the other at 4 of 4.
    assert levels[4].tolist() == [3, 1]
    assert kept_entries((5, 2), (2, 1), 4).tolist() == [0, 2, 5, 7, 10]


def test_a_block_larger_than_the_weight_is_the_whole_weight() -> None:
    assert num_levels_of((3, 5), (16, 16), 64) == 1
    assert kept_entries((3, 5), (16, 16), 1).tolist() == [0, 15]


def test_a_weight_is_seen_as_outputs_by_all_else() -> None:
    assert matrix_shape((16, 3, 5, 5)) == (16, 75)
    weight = random_weight((8, 4, 3, 3))
    assert torch.equal(entry_levels(weight, (4, 1), 18), entry_levels(weight.flatten(1), (4, 1), 18).view(8, 4, 3, 3))


def test_the_memory_format_does_not_matter() -> None:
    weight = random_weight((8, 4, 3, 3))
    assert torch.equal(
        entry_levels(weight, (4, 1), 18), entry_levels(weight.to(memory_format=torch.channels_last), (4, 1), 18)
    )


@pytest.mark.parametrize("block", [[4], [0, 1], [1, 2, 3], [True, 1], [1.5, 1]])
def test_a_block_is_two_sizes(block: list[int]) -> None:
    with pytest.raises(ValueError, match=r"`space.block` must be two sizes of at least 1"):
        check_block(block, "space.block")
