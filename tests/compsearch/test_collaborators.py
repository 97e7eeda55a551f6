import functools

import pytest

from compsearch.collaborators import collaborate

AVAILABLE = {"space": 1, "evaluator": 2, "seed": 3}


class Picky:
    def __init__(self, *, space: int, seed: int, num_steps: int, patience: int = 5) -> None:
        self.given = (space, seed, num_steps, patience)


def test_only_named_collaborators_are_passed() -> None:
    assert collaborate(functools.partial(Picky, num_steps=7), AVAILABLE) == {"space": 1, "seed": 3}


def test_what_a_partial_binds_stands() -> None:
    factory = functools.partial(functools.partial(Picky, num_steps=7), seed=99)
    assert collaborate(factory, AVAILABLE) == {"space": 1}
    assert factory(**collaborate(factory, AVAILABLE)).given == (1, 99, 7, 5)


def test_a_factory_with_keywords_gets_everything() -> None:
    assert collaborate(lambda **kw: kw, AVAILABLE) == AVAILABLE


def test_a_factory_that_names_nothing_gets_nothing() -> None:
    assert collaborate(lambda: None, AVAILABLE) == {}


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ValueError, match="but num_steps is neither configured nor a collaborator") as caught:
        collaborate(Picky, AVAILABLE)
    assert "\n" not in str(caught.value)
    assert "Picky" in str(caught.value)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match="Picky must be given its own options, but got num_step; it takes num_steps"):
        collaborate(functools.partial(Picky, num_step=7), AVAILABLE)
