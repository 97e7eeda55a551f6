import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

from compsearch import multirun
from compsearch.composition import check, compose_config, conf_dir
from compsearch.multirun import _is_lower, divided, labelled

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("ablation_*.yaml"))
VARIANTS = [
    (name, variant)
    for name in EXPERIMENTS
    for variant in yaml.safe_load((conf_dir() / "experiment" / f"{name}.yaml").read_text())["variants"]
]


@pytest.mark.parametrize(
    "overrides",
    [
        ["searcher=amc,legr", "model=resnet20,resnet56", "budget.cost_ratio=0.3,0.5", "seed=range(0,3)"],
        ["recover=bn,lsq", "'run_name=${searcher._target_}'"],
        ["variant=default,replay_raw", "experiment=ablation_amc"],
        ["recover=bn"],
        ["hydra.launcher.n_jobs=1,2"],
        ["recover=[bn,"],
    ],
    ids=" ".join,
)
def test_a_name_that_tells_runs_apart_is_left_alone(overrides: list[str]) -> None:
    assert labelled(overrides) == overrides


def test_what_is_swept_and_not_in_the_name_makes_the_variant() -> None:
    overrides = ["seed=0,1", "recover=bn,lsq", "trials=10", "searcher.state=paper,released"]
    assert labelled(overrides) == [*overrides, "variant=\"${swept:'recover','searcher.state'}\""]


def test_all_that_is_swept_is_added_to_a_name_that_was_given() -> None:
    overrides = ["run_name=mine", "seed=0,1", "recover=bn", "searcher=amc,legr"]
    assert labelled(overrides) == [*overrides[1:], "run_name=\"mine-${swept:'seed','searcher'}\""]


def test_keys_that_end_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["recover=none", "recover@finalist.recover=bn", "pretrain.epochs=3", "searcher.state=paper"]
    monkeypatch.setattr(multirun, "_job_overrides", lambda: overrides)
    keys = [text.partition("=")[0] for text in overrides]
    assert multirun.swept(*keys) == "recover=none,finalist.recover=bn,pretrain.epochs=3,state=paper"


@pytest.mark.parametrize("typed", ["experiment=ablation_amc", "variant=mine"])
def test_beside_variants_of_its_own_what_is_swept_is_named_too(typed: str) -> None:
    assert labelled([typed, "recover=bn,lsq"])[-1] == "swept=\"${swept:'recover'}\""


@pytest.mark.parametrize("swept", ["stages=[0.5,0.2],[0.4,0.2]", "budget.cost_ratios=[0.7,0.5],[0.7,0.6,0.5]"])
def test_lists_that_the_name_says_only_in_part_are_named_whole(swept: str) -> None:
    assert len(labelled([swept])) == 2


def test_options_may_stand_anywhere_and_keep_their_values() -> None:
    arguments = ["seed=0", "--config-dir", "mine", "-m", "searcher=amc,legr", "--config-name=x", "-i"]
    options, overrides = divided(arguments)
    assert options == ["--config-dir", "mine", "-m", "--config-name=x", "--info=all"]
    assert overrides == ["seed=0", "searcher=amc,legr"]


@pytest.mark.parametrize(
    ("other", "is_lower"),
    [
        (["budget.cost_ratio=0.3", "seed=0"], True),
        (["budget.cost_ratio=0.7", "seed=0"], False),
        (["budget.cost_ratio=0.5", "seed=0"], False),
        (["budget.cost_ratio=0.3", "seed=1"], False),
        (["budget.cost_ratio=0.3", "seed=0", "recover=bn"], False),
        (["budget.cost_ratio=null", "seed=0"], False),
        (["seed=0"], False),
    ],
)
def test_a_ranking_comes_from_the_same_job_at_a_lower_cost_ratio(other: list[str], is_lower: bool) -> None:
    assert _is_lower(other, ["budget.cost_ratio=0.5", "seed=0"]) == is_lower


@functools.cache
def default(name: str) -> dict[str, Any]:
    return compose_config([f"experiment={name}", "run_name=x"])


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_of_every_ablation_composes_and_its_arguments_exist(name: str, variant: str) -> None:
    settings = default(name)["variants"][variant]
    if variant == "default":
        assert settings == []
        return
    changed = compose_config([f"experiment={name}", "run_name=x", *settings])
    check(changed)
    assert changed != default(name), f"{settings} are what {name} has by default"


def test_a_checkout_has_an_ablation_of_each_method() -> None:
    assert EXPERIMENTS == ["ablation_amc", "ablation_legr", "ablation_proxylessnas"]
    assert Path(conf_dir() / "experiment" / "ablation.yaml").is_file()
