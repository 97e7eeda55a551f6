import resource

import pytest
import torch

from backends.kept_memory import can_keep, kept_memory


def faults_of_large_allocations():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (5_000_000, 3_000_000, 5_000_000, 2_000_000):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not can_keep(), reason="another C library")
def test_freed_memory_stays_with_the_program_within_it_and_not_after():
    with kept_memory():
        faults_of_large_allocations()
        kept = faults_of_large_allocations()
    given_back = faults_of_large_allocations()
    # 60 MB are 15,000 pages of 4 kB.
    assert kept < 1000
    assert given_back > 10 * max(kept, 1)
