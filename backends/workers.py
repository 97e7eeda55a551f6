"""Threads that each compute on one core.

Small networks gain from several batches at a time, one core each, rather than from many cores inside one convolution:
there is nothing to wait for. Operations let go of Python's lock, so threads do; and as every item is computed by one
core alone, results depend on how work was cut into items and not on how many workers there are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`num_workers` single-core threads; None for as many as torch uses threads. They start at the first `map`."""

    def __init__(self, num_workers: int | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(
                f"`num_workers >= 1` must hold, but got {num_workers=}; leave it null for one per core torch may use"
            )
        self.num_workers = num_workers or torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """``[function(item) for item in items]``, in that order, without gradients. The first error is raised."""

        def call(item: Item) -> Result:
            with torch.no_grad():  # a thread's own setting
                return function(item)

        return list(self._started().map(call, items))

    def _started(self) -> ThreadPoolExecutor:
        if self._pool is None:
            # torch's number of threads is each thread's own, except that later threads begin with the one set last.
            before = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(self.num_workers, "compsearch", _use_one_core)
            all_started = threading.Barrier(self.num_workers)
            list(self._pool.map(lambda _: all_started.wait(), range(self.num_workers)))
            torch.set_num_threads(before)
        return self._pool


def _use_one_core() -> None:
    # A thread begins with the number set last when it first asks for it, or computes, whatever it has set before.
    torch.get_num_threads()
    torch.set_num_threads(1)


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Inside, the caller computes on one core, as workers do.

    Else the cores that helped it turn idly for a while after each of its operations, in case there is another, and
    keep workers waiting: where both take turns often, for a quarter of the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
