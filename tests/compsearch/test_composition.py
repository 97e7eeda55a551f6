import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compsearch.composition import check, compose_config, conf_dir, make, make_network, one_line

CHOICES = sorted(
    (group.name, path.stem)
    for group in conf_dir().iterdir()
    if group.is_dir() and group.name not in ("experiment", "training")
    for path in group.glob("*.yaml")
)


@dataclass(frozen=True)
class Part:
    size: int
    scale: float = 1.0
    name: str | None = None
    inner: Any = None


HERE = f"{__name__}.Part"


def test_inner_nodes_are_built_first_and_collaborators_arrive_by_name() -> None:
    part = make({"_target_": HERE, "scale": 2, "inner": {"_target_": HERE}}, {"size": 3, "unused": 1}, place="part")
    assert part == Part(size=3, scale=2, inner=Part(size=3))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"size": "abc"}, "`part.size` must be int, but got 'abc'"),
        ({"size": True}, "`part.size` must be int, but got True"),
        ({"size": 1, "scale": "x"}, "`part.scale` must be float, but got 'x'"),
        ({"size": 1, "name": 3}, "`part.name` must be str or null, but got 3"),
        ({"size": 1, "depth": 3}, "`part.depth` must be an argument of Part"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_built(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="part") as caught:
        check({"_target_": HERE, **node}, place="part")
    assert message in str(caught.value)


@pytest.mark.parametrize("target", ["no_such_package.Class", "compsearch.space.NoSuchClass"])
def test_a_target_that_cannot_be_imported_is_named(target: str) -> None:
    with pytest.raises(ValueError, match=target) as caught:
        make({"_target_": target}, {}, place="searcher")
    assert "`searcher._target_`" in str(caught.value)
    assert "\n" not in str(caught.value)


def refuse(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("`epochs >= 0` must hold", "finetune: `epochs >= 0` must hold"),
        ("`finetune.epochs >= 0` must hold", "`finetune.epochs >= 0` must hold"),
        ("the dataset must be there; set dataset.build.root", "the dataset must be there; set dataset.build.root"),
    ],
)
def test_a_refusal_that_names_no_setting_gets_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make({"_target_": f"{__name__}.refuse", "text": text}, {}, place="finetune")
    assert str(caught.value) == message


def test_a_recipe_that_is_refused_is_named() -> None:
    recipe = compose_config(["run_name=test", "finetune.epochs=-1"])["finetune"]
    with pytest.raises(ValueError, match=r"^finetune: `epochs >= 0` must hold for a recipe, but got epochs=-1$"):
        make(recipe, {}, place="finetune")


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_its_arguments_exist(group: str, choice: str) -> None:
    extra = {
        ("dataset", "imagefolder"): ["dataset.build.root=somewhere"],
        ("model", "torchvision"): ["model.name=resnet18"],
        ("model", "custom"): ["model.build._target_=torchvision.models.resnet18"],
    }.get((group, choice), [])
    override = f"{group}={choice}"
    if group == "cost_model":  # there may be several, each under its resource's name
        override = f"cost_model@cost_models.{choice}={choice}"
        override = override if choice in ("macs", "params") else f"+{override}"
    config = compose_config([override, "run_name=test", *extra])
    check(config)
    if group == "cost_model":
        assert choice in config["cost_models"]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "vit_b_16"])
def test_torchvision_names_are_models(name: str) -> None:
    assert compose_config([f"model={name}", "run_name=test"])["model"]["build"]["name"] == name


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=abc", ["seed", "Integer"]),
        ("sead=1", ["'sead' is not; did you mean seed?"]),
        ("+trails=5", ["'trails' is not; did you mean trials?"]),
        ("trails=5", ["'trails' is not; did you mean trials?"]),
        ("experimnt=ablation", ["did you mean experiment?"]),
        ("zzz=1", ["'zzz' is not; there are searcher, supernet"]),
        ("seed=-1", ["`seed >= 0` must hold, but got seed=-1"]),
        ("trials=0", ["`trials >= 1` must hold, but got trials=0"]),
        ("dataset=imagefolder", ["add dataset.build.root=<folder>"]),
        ("model=custom", ["add model.build._target_=package.module.Class"]),
        ("model=torchvision", ["add model.name=<value>"]),
        ("searcher.num_stepz=1", ["'searcher.num_stepz' is not; did you mean searcher.num_steps?"]),
        ("searcher.agent.batchsize=3", ["did you mean searcher.agent.batch_size?"]),
        ("recover.zzz=1", ["'recover.zzz' is not; there are positions_per_image, ridge"]),
        ("budget.cost_ratoi=0.3", ["did you mean budget.cost_ratio?"]),
        ("searcher=nothing", ["searcher/nothing", "amc", "random", "uniform"]),
        ("model=resnet51", ["model/resnet51", "resnet50"]),
        ("dataset=mnist", ["dataset/mnist", "digits", "cifar10"]),
        ("budget.cost_ratio=half", ["cost_ratio"]),
        ("finalist.num=0", ["`finalist.num >= 1` must hold, but got finalist.num=0"]),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(override: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        compose_config([override, "run_name=test"])
    line = one_line(caught.value)
    assert "\n" not in line
    assert "use +" not in line, line
    assert all(word in line for word in words), line


def test_arguments_of_other_peoples_classes_may_be_added() -> None:
    own = ["model=custom", "model.name=mine", "model.build._target_=package.Net", "run_name=test"]
    with pytest.raises(ValueError, match=re.escape("is not; there are none; +model.build.depth=<value> passes it to")):
        compose_config([*own, "model.build.depth=3"])
    assert compose_config([*own, "+model.build.depth=3"])["model"]["build"]["depth"] == 3
    model, name, target, run_name = own
    with pytest.raises(ValueError, match=re.escape("+model.build.depth=<value> passes it to model.build._target_")):
        compose_config([model, name, "model.build.depth=3", target, run_name])


def test_an_unknown_setting_of_an_export_is_compared_with_those_of_exports() -> None:
    with pytest.raises(ValueError, match=r"'formt' is not; did you mean format\?$"):
        compose_config(["formt=onnx"], name="export")


def any_network(width: int = 1, **more: object) -> dict[str, object]:
    return {"width": width, **more}


def narrow_network(**more: int) -> int:
    return (lambda width: width)(**more)


def test_a_network_made_from_any_keywords_is_told_the_number_of_classes_and_nothing_else() -> None:
    available = {"num_classes": 7, "seed": 0, "device": "cpu", "weights": None}
    node = {"_target_": f"{__name__}.any_network", "depth": 3}
    assert make_network(node, available) == {"width": 1, "depth": 3, "num_classes": 7}
    assert make_network({**node, "num_classes": 9}, available)["num_classes"] == 9
    narrow = {"_target_": f"{__name__}.narrow_network", "width": 3}
    assert make_network(narrow, available) == 3  # it wants no number of classes
    with pytest.raises(ValueError, match=r"`model.build` must be what .*narrow_network can be called with") as caught:
        make_network({**narrow, "depth": 3}, available)
    assert "'depth'" in str(caught.value)


def test_a_value_asked_for_by_another_and_missing_is_named() -> None:
    config = OmegaConf.create({"model": {"name": "???"}, "run_name": "${model.name}"})
    with pytest.raises(OmegaConfBaseException) as caught:
        _ = config.run_name
    assert one_line(caught.value) == "`model.name` must be set, but has no value; add model.name=<value>"


def test_a_cause_is_added_to_messages_of_hydra_only() -> None:
    own, hydra = ValueError("an image must decode"), HydraException("Error merging")
    own.__cause__ = hydra.__cause__ = OSError("cannot identify image file")
    assert one_line(own) == "an image must decode"
    assert one_line(hydra) == "Error merging: cannot identify image file"


def test_the_configuration_lies_beside_the_package() -> None:
    assert (conf_dir() / "config.yaml").is_file()
    assert conf_dir().is_absolute()
    assert isinstance(conf_dir(), Path)
