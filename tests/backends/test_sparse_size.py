import zlib

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

from backends.sparse_size import StoredSizes, bsr_arrays, csr_arrays
from backends.sparse_space import sparse_space
from backends.sparsity import MagnitudeMasks

SHAPES = [(16, 27), (10, 64), (5, 300), (70, 3), (3, 70000), (1, 1)]


def sparse_matrix(shape: tuple[int, int], density: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


def smallest(largest: int) -> type:
    return np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.uint32


@pytest.mark.parametrize("shape", SHAPES)
def test_csr_is_scipys_with_the_smallest_indices(shape: tuple[int, int]) -> None:
    matrix = sparse_matrix(shape)
    values, columns, beginnings = csr_arrays(matrix)
    theirs = scipy.sparse.csr_array(matrix.numpy())
    assert np.array_equal(values, theirs.data)
    assert np.array_equal(columns, theirs.indices)
    assert np.array_equal(beginnings, theirs.indptr)
    assert columns.dtype == smallest(shape[1] - 1)
    assert beginnings.dtype == smallest(len(values))
    assert np.array_equal(scipy.sparse.csr_array((values, columns, beginnings), shape=shape).toarray(), matrix.numpy())


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 4), (16, 1), (2, 3)])
@pytest.mark.parametrize("shape", [(16, 27), (10, 64), (5, 300), (70, 3)])
def test_bsr_is_scipys_of_the_padded_matrix(shape: tuple[int, int], block: tuple[int, int]) -> None:
    matrix = sparse_matrix(shape, density=0.05)
    values, columns, beginnings = bsr_arrays(matrix, block)
    padded = np.zeros([-(-size // step) * step for size, step in zip(shape, block, strict=True)], dtype=np.float32)
    padded[: shape[0], : shape[1]] = matrix.numpy()
    theirs = scipy.sparse.bsr_array(padded, blocksize=block)
    theirs.sort_indices()
    assert np.array_equal(values, theirs.data)
    assert np.array_equal(columns, theirs.indices)
    assert np.array_equal(beginnings, theirs.indptr)
    assert columns.dtype == smallest(padded.shape[1] // block[1] - 1)
    assert beginnings.dtype == smallest(len(values))


def test_sizes_of_a_network_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]).view(4, 2, 1, 1))
        network[2].weight.copy_(torch.tensor([[0.0, 0, 0, 5], [0, 0, 0, 0], [0, 0, 0, 6]]))
    space = sparse_space(network, torch.zeros(2, 2, 1, 1), block=[1, 1], num_levels=4, min_keep_ratio=0.1)
    found = StoredSizes(space=space, block=[4, 1], level=6)(network)
    biases = (4 + 3) * 4
    assert found.dense == (8 + 12) * 4 + biases
    # Four values, column indices and five beginnings; two, two and four: all indices fit in a byte.
    assert found.csr == (4 * 4 + 4 + 5) + (2 * 4 + 2 + 4) + biases
    # One block of four, its column, two beginnings of one row of blocks; the second, with a padded row, likewise.
    assert found.bsr == 2 * (4 * 4 + 1 + 2) + biases
    assert found.block == "4×1"
    state = [network[0].weight, network[2].weight, network[0].bias, network[2].bias]
    stream = b"".join(tensor.detach().numpy().tobytes() for tensor in state)
    assert found.dense_zlib == len(zlib.compress(stream, 6))
    assert found.csr_zlib > 0
    assert found.bsr_zlib > 0


def test_zeros_become_bytes(tiny: object) -> None:
    model, example = tiny.model, torch.zeros(2, 3, 8, 8)  # type: ignore[attr-defined]
    sizes = {}
    for block in ([1, 1], [4, 1]):
        space = sparse_space(model, example, block=block, num_levels=64, min_keep_ratio=0.1)
        surgery = MagnitudeMasks()
        masked = surgery(model, space, surgery.typical(model, space, 0.125))
        sizes[tuple(block)] = StoredSizes(space=space, block=[4, 1], level=6)(masked)
    single, blocks = sizes[1, 1], sizes[4, 1]
    assert single.csr < 0.4 * single.dense
    assert single.csr_zlib < single.dense_zlib < single.dense
    # Scattered zeros fill few blocks; what was removed in blocks is stored in blocks for little more than its values.
    assert blocks.bsr < blocks.csr
    assert blocks.bsr < single.bsr


def test_bfloat16_takes_half() -> None:
    network = nn.Linear(64, 64, bias=False)
    space = sparse_space(network, torch.zeros(2, 64), block=[1, 1], num_levels=4, min_keep_ratio=0.1)
    sizes = StoredSizes(space=space, block=[4, 1], level=6)
    assert 2 * sizes(network.bfloat16()).dense == sizes(network.float()).dense


@pytest.mark.parametrize(("changes", "message"), [({"level": 0}, "sizes.level"), ({"block": [4]}, "sizes.block")])
def test_a_wrong_option_is_refused(changes: dict[str, object], message: str) -> None:
    network = nn.Linear(4, 4)
    space = sparse_space(network, torch.zeros(2, 4), block=[1, 1], num_levels=4, min_keep_ratio=0.1)
    with pytest.raises(ValueError, match=message):
        StoredSizes(**({"space": space, "block": [4, 1], "level": 6} | changes))  # type: ignore[arg-type]
