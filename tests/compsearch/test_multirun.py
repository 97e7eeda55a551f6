import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

from compsearch.composition import check, compose_config, conf_dir
from compsearch.multirun import _is_lower, flag_first, labelled

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("ablation_*.yaml"))
VARIANTS = [
    (name, variant)
    for name in EXPERIMENTS
    for variant in yaml.safe_load((conf_dir() / "experiment" / f"{name}.yaml").read_text())["variants"]
]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "searcher=amc,legr", "model=resnet20,resnet56", "budget.cost_ratio=0.3,0.5", "seed=range(0,3)"],
        ["-m", "recover=bn,lsq", "variant=mine"],
        ["-m", "recover=bn,lsq", "'run_name=${searcher._target_}'"],
        ["experiment=ablation_amc", "recover=bn,lsq"],
        ["recover=bn"],
        ["-m", "hydra.launcher.n_jobs=1,2"],
        ["-m", "recover=[bn,"],
    ],
    ids=" ".join,
)
def test_a_name_that_tells_runs_apart_is_left_alone(arguments: list[str]) -> None:
    assert labelled(arguments) == arguments


def test_the_flag_may_stand_anywhere() -> None:
    assert flag_first(["seed=0", "-m", "searcher=amc,legr"]) == ["-m", "seed=0", "searcher=amc,legr"]
    assert flag_first(["seed=0"]) == ["seed=0"]


def test_what_is_swept_and_not_in_the_name_makes_the_variant() -> None:
    arguments = ["-m", "seed=0,1", "recover=bn,lsq", "trials=10", "searcher.state=paper,released"]
    assert labelled(arguments) == [*arguments, "variant=\"${swept:'recover','searcher.state'}\""]


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
