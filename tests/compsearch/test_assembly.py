"""What is built from a configuration, and what of it is refused before anything takes long."""

from pathlib import Path

import pytest
from quick import QUICK

from compsearch.assembly import assemble
from compsearch.composition import asks_for, compose_config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.epochs=-1", "finetune: `epochs >= 0` must hold"),
        ("evaluator.precision=half", "`evaluator.precision` must be one of auto"),
        ("evaluator.batch_size=0", "`evaluator.batch_size >= 1` must hold"),
        ("recover.batch_size=1", "recover: `batch_size >= 2` must hold"),
        ("calibration.num_images=0", "num_images"),
        ("budget.cost_ratio=0.001", "cost_ratio=0.001"),
        ("sizes.level=0", "`1 <= sizes.level <= 9` must hold"),
        ("searcher=legr searcher.evolution.population_size=0", "searcher.evolution: .* population_size=0"),
        ("searcher=amc searcher.agent.batch_size=-4", r"searcher.agent: `agent.batch_size >= 1` must hold"),
        ("searcher=amc ~searcher.agent.tau", "searcher.agent: .* but tau is neither"),
        ("searcher=amc ~searcher.agent", "searcher: .* but agent is neither"),
        ("searcher=amc searcher.reward=foo", "`searcher.reward` must be one of accuracy"),
        ("searcher=legr searcher.evolve_only=foo", "`searcher.evolve_only` must be null, alpha or kappa"),
        ("searcher=random searcher.num_steps=0", "`num_steps >= 1` must hold"),
        ("searcher=evolution searcher.fitness=foo", "`searcher.fitness` must be one of"),
        ("searcher=proxylessnas searcher.cost_loss.form=foo", "`cost_loss.form` must be one of"),
    ],
)
def test_what_no_weights_are_needed_to_refuse_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, message: str
) -> None:
    def train(*given: object, **named: object) -> None:
        raise AssertionError("the network is trained")

    monkeypatch.setattr("backends.dense_network.trained_weights", train)
    config = compose_config([*QUICK, "searcher=uniform", f"cache_dir={tmp_path}", "run_name=run", *setting.split()])
    with pytest.raises(ValueError, match=message):
        assemble(config)
    with pytest.raises(AssertionError, match="is trained"):
        assemble(compose_config([*QUICK, "searcher=uniform", f"cache_dir={tmp_path}", "run_name=run"]))


def test_what_asks_for_a_collaborator_is_left_for_later() -> None:
    options = {"_target_": f"{__name__}.options", "seed": 1}
    asked = {"_target_": f"{__name__}.options"}
    for node in ({"inner": asked}, [asked], {**asked, "seed": asked}, asked):
        assert asks_for(node, {"seed"}, place="searcher")
    for node in (options, {"inner": [options]}, 3):
        assert not asks_for(node, {"seed"}, place="searcher")


def options(seed: int) -> int:
    return seed
