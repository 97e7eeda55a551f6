"""Memory that is kept between runs instead of being given back to the system and asked for again.

The C library's allocator returns large blocks when they are freed, and every page of the next such block costs a fault:
of an eager network with large activations that can be half the time, and whether it happens depends on the order of
sizes. Programs that serve networks use allocators that keep their memory (jemalloc, tcmalloc); so do GPUs under torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h of the GNU C library: the options' numbers, and the values that they have at the start of a program.
_TRIM_THRESHOLD, _TRIM_AT_START = -1, 128 * 1024
_MMAP_MAX, _MMAP_AT_START = -4, 65536
_NEVER = 2**31 - 1


def can_keep() -> bool:
    """Whether this system's allocator can be told to."""
    return _library() is not None


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, freed memory stays with the program; on leaving, it goes back. Does nothing where it can't."""
    library = _library()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _MMAP_AT_START)
        library.mallopt(_TRIM_THRESHOLD, _TRIM_AT_START)
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError, TypeError):  # not the GNU C library
        return None
