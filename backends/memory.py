"""Peak activation memory: the most bytes of activations alive at once in one forward of one image, in float32.

Weights don't count, nor do scratch buffers that a layer's kernel may use. Memory is alive from the operation that makes
it to the last one that reads it, and an in-place operation works in the memory of what it changes: that is what a
runtime needs that frees at the last use and reuses at once, as planners for small devices do. Eager PyTorch may hold
more, as long as a Python variable names a tensor.
"""

from __future__ import annotations

from backends.inventory import Inventory
from backends.macs import policy_counts
from compsearch.space import FloatArray, IntArray, Policy, SearchSpace

_BYTES_PER_ELEMENT = 4


class PeakMemoryCost:
    """The peak of activation memory in bytes; exact."""

    resource = "peak_activation_bytes"

    def __init__(self, *, space: SearchSpace, inventory: Inventory) -> None:
        self._space = space
        self._inventory = inventory

    def cost(self, policy: Policy) -> float:
        """The cost of one policy. Raises ValueError when it belongs to another space."""
        return float(self.costs(policy_counts(self._space, policy))[0])

    def costs(self, choices: IntArray) -> FloatArray:
        """Bytes [num_policies] of kept units per group and, if given, operations per block behind them."""
        peaks: FloatArray = self._inventory.alive(choices).max(axis=1) * _BYTES_PER_ELEMENT
        return peaks
