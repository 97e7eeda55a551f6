"""`trials=` alone sets the length of every search: what follows from it is right, small or large."""

import functools
from typing import Any

import numpy as np
import pytest

from compsearch.composition import check, compose_config, make
from compsearch.protocols import Searcher
from compsearch.toy import ToySupernet, collaborators
from compsearch.trial import Trial
from searchers.amc import AMC
from searchers.evolution import Evolution
from searchers.legr import LeGR

#: Those that score one policy after another; the length of the others is not a number of trials.
COUNTED = ["amc", "legr", "evolution", "random"]
OTHERS = ["proxylessnas", "uniform", "global_magnitude"]


@functools.cache
def composed(name: str, *overrides: str) -> dict[str, Any]:
    config = compose_config([f"searcher={name}", "run_name=run", *overrides])
    check(config)
    node: dict[str, Any] = config["searcher"]
    return node


def built(name: str, *overrides: str) -> Searcher:
    """The searcher of the configuration, on the toy problem; AMC with a small agent, for speed."""
    small = ["searcher.agent.hidden_size=16"] if name == "amc" else []
    given = collaborators()
    available = {**given, "supernet": ToySupernet(given["space"])}
    searcher: Searcher = make(composed(name, *small, *overrides), available, place="searcher")
    return searcher


def run(searcher: Searcher) -> list[Trial]:
    return [trial for _ in range(searcher.num_steps) for trial in searcher.step()]


@pytest.mark.parametrize("trials", [400, 100, 10])
@pytest.mark.parametrize("name", [*COUNTED, *OTHERS])
def test_every_searcher_is_built_whatever_the_number_of_trials(name: str, trials: int) -> None:
    assert built(name, f"trials={trials}").num_steps >= 1


@pytest.mark.parametrize("trials", [10, 3, 1])
@pytest.mark.parametrize("name", COUNTED)
def test_a_search_has_as_many_trials_as_were_asked_for_however_few(name: str, trials: int) -> None:
    assert len(run(built(name, f"trials={trials}"))) == trials


@pytest.mark.parametrize("name", OTHERS)
def test_other_searchers_do_not_depend_on_the_number_of_trials(name: str) -> None:
    assert composed(name, "trials=10") == composed(name, "trials=400")


@pytest.mark.parametrize(
    ("trials", "warmup", "starts"), [(400, 100, 5), (100, 25, 5), (20, 5, 5), (10, 2, 2), (1, 1, 1)]
)
def test_amc_explores_for_a_quarter_of_its_episodes_and_learns_before_it_acts(
    trials: int, warmup: int, starts: int
) -> None:
    searcher = built("amc", f"trials={trials}")
    assert isinstance(searcher, AMC)
    assert (searcher.num_steps, searcher.warmup_episodes, searcher.learning_starts) == (trials, warmup, starts)


def test_amcs_noise_falls_by_a_hundredth_per_episode_in_the_papers_300() -> None:
    assert composed("amc", "trials=400")["noise_decay"] == pytest.approx(0.99, abs=1e-4)


@pytest.mark.parametrize("trials", [400, 100, 10])
def test_amcs_noise_ends_at_a_twentieth_of_what_it_begins_with(trials: int) -> None:
    searcher = built("amc", f"trials={trials}")
    assert isinstance(searcher, AMC)
    searcher.episode = searcher.warmup_episodes
    assert searcher.sigma == 0.5
    searcher.episode = trials
    assert searcher.sigma == pytest.approx(0.5 / 20)


@pytest.mark.parametrize(
    ("trials", "population", "sample"), [(400, 64, 16), (1000, 64, 16), (100, 25, 6), (10, 2, 1), (1, 1, 1)]
)
@pytest.mark.parametrize("name", ["legr", "evolution"])
def test_a_population_is_a_quarter_of_the_trials_and_64_at_most_and_a_sample_a_quarter_of_it(
    name: str, trials: int, population: int, sample: int
) -> None:
    searcher = built(name, f"trials={trials}")
    assert isinstance(searcher, LeGR | Evolution)
    options = searcher.evolution.options
    assert (searcher.evolution.num_trials, options.population_size, options.sample_size) == (trials, population, sample)


@pytest.mark.parametrize("name", ["legr", "evolution"])
def test_a_population_of_two_still_breeds(name: str) -> None:
    trials = run(built(name, "trials=10"))
    assert len({str(trial.genome) for trial in trials}) == 10


def test_the_searchers_own_length_wins_and_the_rest_follows_it() -> None:
    assert composed("amc", "trials=400", "searcher.num_steps=40")["warmup_episodes"] == 10
    assert composed("legr", "trials=400", "searcher.num_trials=40")["evolution"]["population_size"] == 10
    assert composed("legr", "searcher.evolution.population_size=20")["evolution"]["sample_size"] == 5


def test_a_longer_warmup_shortens_the_decay_and_leaves_its_end() -> None:
    decays = [composed("amc", f"searcher.warmup_episodes={n}")["noise_decay"] for n in (0, 100, 200)]
    assert [decay ** (400 - n) for decay, n in zip(decays, (0, 100, 200), strict=True)] == pytest.approx([0.05] * 3)
    assert (np.diff(decays) < 0).all()


@pytest.mark.parametrize(
    ("name", "trials"), [*((name, "0") for name in COUNTED), ("amc", "-3"), ("legr", "many"), ("random", "2.5")]
)
def test_a_number_of_trials_that_is_none_is_refused_in_one_line(name: str, trials: str) -> None:
    with pytest.raises(ValueError, match=r"trials|num_steps") as raised:
        built(name, f"trials={trials}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "override", ["amc searcher.num_steps=many", "amc searcher.warmup_episodes=null", "legr searcher.num_trials=many"]
)
def test_a_setting_that_others_cannot_follow_is_refused_in_one_line(override: str) -> None:
    name, option = override.split()
    with pytest.raises(ValueError, match="a setting that others follow from must be a number, but got") as raised:
        composed(name, option)
    assert "\n" not in str(raised.value)


def test_a_length_that_is_no_whole_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"`searcher\.num_trials` must be int, but got 2\.5"):
        composed("legr", "searcher.num_trials=2.5")
