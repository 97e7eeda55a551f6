"""One search, a network for every budget: what a run leaves, and what a kill in its midst changes (nothing)."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import compsearch
from backends.workbench import NetworkWorkbench
from compsearch import job
from compsearch.assembly import assemble
from compsearch.composition import compose_config
from compsearch.family import load_state
from compsearch.recorder import read_trials
from compsearch.run_folder import RunFolder
from compsearch.space import Policy
from compsearch.summary import Summary

FAST = [
    "model=resnet20",
    "model.build.depth=8",
    "model.weights=random",
    "dataset.build.image_size=8",
    "calibration.num_images=32",
    "finalist.calibration_images=32",
    "finalist.num=2",
    "finetune.epochs=1",
    "latency.repetitions=2",
    "latency.warmup=1",
    "space.divisor=4",
    "recover=bn",
    "recover@finalist.recover=bn",
    "run_name=family",
]
EVOLUTION = ["searcher.num_trials=4", "searcher.evolution.population_size=3", "searcher.evolution.sample_size=2"]
RATIOS = (0.7, 0.5, 0.3)
LEGR = compose_config([*FAST, "searcher=legr", *EVOLUTION, "budget.cost_ratios=[0.5,0.3,0.7]"])


class Killed(BaseException):
    """As abrupt as a kill for everything that runs in this process."""


def run(config: dict[str, Any], path: Path) -> Summary:
    with RunFolder(path, config, ignore=job.IRRELEVANT) as folder:
        return job.summary_of(config, folder, assemble(config))


def comparable(summary: Summary) -> dict[str, Any]:
    """Everything of a summary that does not depend on time."""
    data = summary.to_json()
    data["search_cost"].pop("wall_s")
    data["search_cost"].pop("cpu_s")
    for row in [*data["networks"], *(row for member in data["family"] for row in member["networks"])]:
        row.pop("latency")
        row["cost_ratios"].pop("latency_ms", None)
    return data


def trials(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in {"wall_s", "cpu_s"}} for line in lines]


def weights_of(network: torch.nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run that nothing interrupts, with the networks that were measured on each split."""
    seen: dict[str, Counter[bytes]] = {"search": Counter(), "test": Counter()}
    measure = NetworkWorkbench.measure

    def counting(bench: NetworkWorkbench, network: torch.nn.Module, split: str) -> Any:
        seen[split][weights_of(network)] += 1
        return measure(bench, network, split)

    path = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkWorkbench, "measure", counting)
        summary = run(LEGR, path)
    return SimpleNamespace(summary=summary, path=path, seen=seen)


def test_the_summary_has_every_budget_largest_first_and_is_within_each(whole: SimpleNamespace) -> None:
    assert [member.cost_ratio for member in whole.summary.family] == pytest.approx(RATIOS)
    assert whole.summary.budget == ("macs", pytest.approx(0.3))
    for ratio, member in zip(RATIOS, whole.summary.family, strict=True):
        assert [row.name for row in member.networks] == ["compressed", "fine-tuned", "uniform"]
        for row in member.networks:
            assert ratio - 0.1 < row.macs / whole.summary.dense.macs <= ratio
            assert None not in (row.accuracy_search, row.accuracy_test)
        assert member.networks[0].latency is not None
    assert whole.summary.family[-1].networks == whole.summary.networks[1:]
    assert Summary.from_json(json.loads((whole.path / "summary.json").read_text())) == whole.summary


def test_members_reload_to_networks_that_do_as_was_measured(whole: SimpleNamespace) -> None:
    record = json.loads((whole.path / "family.json").read_text())
    assert record["resource"] == "macs"
    assert set(record["genome"]) == {"alpha", "kappa"}
    assert [entry["cost_ratio"] for entry in record["members"]] == pytest.approx(RATIOS)
    assert len({entry["weights"] for entry in record["members"]}) == len(RATIOS)
    parts = assemble(LEGR)
    for entry, member in zip(record["members"], whole.summary.family, strict=True):
        policy = Policy.from_json(entry["policy"])
        network = parts.workbench.load(policy, load_state(whole.path / entry["weights"]))
        row = member.network("fine-tuned")
        for split, expected in (("search", row.accuracy_search), ("test", row.accuracy_test)):
            assert parts.workbench.measure(network, split).accuracy == expected
        assert parts.cost_model.cost(policy) == row.macs
        assert entry["achieved_cost_ratio"] == row.macs / whole.summary.dense.macs
    assert Policy.from_json(json.loads((whole.path / "policy.json").read_text())) == policy


def test_members_are_nested_and_stand_behind_the_trials_of_the_search(whole: SimpleNamespace) -> None:
    found = read_trials(whole.path / "trials.jsonl")
    assert len(found) == 4 + 2
    assert whole.summary.search_cost.num_trials == 4
    policies = [Policy.from_json(entry["policy"]) for entry in members(whole.path)]
    assert [trial.policy for trial in found[-2:]] == policies[:2]
    assert all(trial.genome == found[-1].genome for trial in found[-2:])
    assert policies[2] in {trial.policy for trial in found[:4]}
    for larger, smaller in itertools.pairwise(policies):
        kept = dict(larger.kept)
        assert all(set(units) <= set(kept[name]) for name, units in smaller.kept)


def members(path: Path) -> list[dict[str, Any]]:
    return list(json.loads((path / "family.json").read_text())["members"])


def test_the_test_split_is_read_once_per_network(whole: SimpleNamespace) -> None:
    rows = [whole.summary.dense, *(row for member in whole.summary.family for row in member.networks)]
    assert set(whole.seen["test"].values()) == {1}
    assert whole.seen["test"].total() == len(rows) == 1 + 3 * len(RATIOS)


def test_the_plots_of_a_family_are_there(whole: SimpleNamespace) -> None:
    names = {path.name for path in whole.path.iterdir()}
    assert names >= {"family.png", "kept.png", "genome.png", "search.png", "pareto.png", "policy.png"}
    assert not [name for name in names if name.startswith("finetune")]


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "stage", ["finalist", "finetune", "family 0.7", "family 0.5", "report", "summary"], ids=lambda name: name
)
def test_a_kill_about_a_stage_changes_nothing(
    whole: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, is_after: bool
) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)
    finish = RunFolder.finish

    def killing(folder: RunFolder, name: str, result: Any) -> None:
        if name != stage or is_after:
            finish(folder, name, result)
        if name == stage:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killing)
        with pytest.raises(Killed):
            run(LEGR, tmp_path / "run")
    resumed = run(LEGR, tmp_path / "run")
    assert comparable(resumed) == comparable(whole.summary)
    assert trials(tmp_path / "run") == trials(whole.path)
    assert members(tmp_path / "run") == members(whole.path)


def test_a_kill_while_the_members_trials_are_written_leaves_them_once(
    whole: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)
    write = compsearch.atomic.write_torch

    def killing(path: Path, state: Any, **options: Any) -> None:
        if path.name == "checkpoint.pt" and state["num_trials"] == 6:
            raise Killed
        write(path, state, **options)

    with monkeypatch.context() as patch:
        patch.setattr(compsearch.atomic, "write_torch", killing)
        with pytest.raises(Killed):
            run(LEGR, tmp_path / "run")
    assert len(trials(tmp_path / "run")) == 6  # written, but not yet counted
    resumed = run(LEGR, tmp_path / "run")
    assert comparable(resumed) == comparable(whole.summary)
    assert trials(tmp_path / "run") == trials(whole.path)


def test_resuming_reads_the_test_split_for_unfinished_networks_only(
    whole: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)
    seen: Counter[bytes] = Counter()
    measure, finish = NetworkWorkbench.measure, RunFolder.finish

    def counting(bench: NetworkWorkbench, network: torch.nn.Module, split: str) -> Any:
        seen[weights_of(network)] += split == "test"
        return measure(bench, network, split)

    def killing(folder: RunFolder, name: str, result: Any) -> None:
        finish(folder, name, result)
        raise Killed

    monkeypatch.setattr(NetworkWorkbench, "measure", counting)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killing)  # one stage per process
        for _ in range(6):
            with pytest.raises(Killed):
                run(LEGR, tmp_path / "run")
    run(LEGR, tmp_path / "run")
    assert +seen == whole.seen["test"]
    assert trials(tmp_path / "run") == trials(whole.path)


@pytest.mark.parametrize("searcher", ["evolution", "global_magnitude", "uniform"])
def test_every_searcher_with_a_family_gives_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searcher: str) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)
    options = EVOLUTION if searcher == "evolution" else []
    given = [*FAST, f"searcher={searcher}", *options, "finetune.epochs=0", "budget.cost_ratios=[0.4,0.8]"]
    summary = run(compose_config(given), tmp_path / "run")
    assert [member.cost_ratio for member in summary.family] == pytest.approx((0.8, 0.4))
    for member in summary.family:
        row = member.network("compressed")
        assert row is not None
        assert row.macs <= member.cost_ratio * summary.dense.macs * (1 + 1e-9)
        # A network that is the baseline is not measured twice.
        assert (member.network("uniform") is None) == (searcher == "uniform")
        assert member.network("fine-tuned") is None


def test_one_budget_is_no_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "draw_run", lambda *arguments: None)
    config = compose_config([*FAST, "searcher=legr", *EVOLUTION, "finetune.epochs=0", "budget.cost_ratios=[0.4]"])
    summary = run(config, tmp_path / "run")
    assert summary.family == ()
    assert summary.budget == ("macs", pytest.approx(0.4))
    assert not (tmp_path / "run" / "family.json").exists()


def test_a_network_in_hand_gets_a_family_too(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(90, 1, 8, 8, generator=generator), torch.arange(90) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Flatten()
        ).append(torch.nn.Linear(16 * 36, 3))
    result = compsearch.compress(
        model.eval(),
        train=(images, labels),
        test=(images[:20], labels[:20]),
        searcher="global_magnitude",
        folder=tmp_path / "run",
        overrides=["budget.cost_ratios=[0.3,0.6]", "finetune.epochs=0", "latency.repetitions=2"],
    )
    assert [member.cost_ratio for member in result.summary.family] == pytest.approx((0.6, 0.3))
    # The module is the one at the lowest budget.
    assert sum(parameter.numel() for parameter in result.module.parameters()) == result.summary.networks[1].params
    assert (tmp_path / "run" / "family-0.6.pt").is_file()


@pytest.mark.parametrize("searcher", ["amc", "random"])
def test_a_searcher_without_a_family_is_refused_with_the_sweep_to_type_instead(searcher: str) -> None:
    config = compose_config([*FAST, f"searcher={searcher}", "budget.cost_ratios=[0.3,0.7,0.5]"])
    with pytest.raises(ValueError, match=re.escape("-m budget.cost_ratio=0.7,0.5,0.3")) as caught:
        assemble(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["budget.cost_ratios=[]"], "must be distinct and at least one, but got []"),
        (["budget.cost_ratios=[0.5,0.3,0.5]"], "must be distinct and at least one, but got [0.5, 0.3, 0.5]"),
        (["budget.cost_ratios=[0.5,0.3,0.50000001]"], "must be distinct"),
        (["budget.cost_ratios=[0.5,1.5]"], "`0 < budget.cost_ratio <= 1` must hold, but got cost_ratio=1.5"),
        (["budget.cost_ratios=[0.5,0]"], "`0 < budget.cost_ratio <= 1` must hold, but got cost_ratio=0"),
        (["budget.cost_ratios=[0.5,0.0001]"], "what the smallest policy costs"),
        (["budget.cost_ratios=[0.5,0.3]", "budget.limit=400000"], "only one of budget.cost_ratio(s) and budget.limit"),
        (["budget.cost_ratios=[0.5,0.3]", "budget.limit=400000", "budget.cost_ratio=null"], "only one of"),
    ],
)
def test_wrong_lists_are_refused_in_one_line(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        assemble(compose_config([*FAST, "searcher=legr", *options]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "[abc]", "[0.5,null]"])
def test_what_is_no_list_of_numbers_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(ValueError, match="cost_ratios") as caught:
        compose_config([*FAST, "searcher=legr", f"budget.cost_ratios={value}"])
    assert "\n" not in str(caught.value)
