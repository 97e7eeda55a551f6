import pytest
import torch
from torch import nn

from backends.seeding import isolated_rng


def test_what_is_drawn_inside_follows_from_the_seed_and_nothing_leaks_out():
    before = torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        with isolated_rng(seed):
            drawn.append(nn.Linear(3, 3).weight.tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_state_comes_back_after_an_error():
    def fail():
        with isolated_rng(0):
            torch.rand(3)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
