import gc
import weakref

import pytest

from compsearch.garbage import only_new_objects


class Knot:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.own = self


def test_what_is_alive_before_is_set_aside_until_the_end() -> None:
    before = Knot()
    freed = weakref.ref(before)
    with only_new_objects():
        assert gc.get_freeze_count() > 0
        del before
        gc.collect()
        assert freed() is not None
    gc.collect()
    assert freed() is None


def test_what_is_made_inside_is_freed_inside() -> None:
    with only_new_objects():
        freed = weakref.ref(Knot())
        gc.collect()
        assert freed() is None


def test_an_error_ends_it_too() -> None:
    with pytest.raises(KeyError), only_new_objects():
        raise KeyError("inside")
    assert gc.get_freeze_count() == 0
