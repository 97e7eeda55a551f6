import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from compsearch.comparison.comparison import Comparison
from compsearch.comparison.runs import read_comparison


def labels(comparison: Comparison) -> dict[str, str]:
    return {run.name: run.series for run in comparison.runs}


def remark(comparison: Comparison, part: str) -> str:
    [found] = [text for text in comparison.remarks if part in text]
    assert "\n" not in found
    return found


# --- What is read -----------------------------------------------------------------------------------------------------


def test_a_folder_of_runs_and_a_run_are_read_and_each_run_counts_once(run_folders: SimpleNamespace) -> None:
    first = run_folders.write("a", settings={"seed": 0})
    run_folders.write("b", "random", settings={"seed": 1})
    link = run_folders.root / "link"
    link.symlink_to(first)
    comparison = read_comparison([run_folders.root, first, link])
    assert [run.name for run in comparison.runs] == ["a", "b"]
    assert [run.searcher for run in comparison.runs] == ["amc", "random"]
    assert [run.seed for run in comparison.runs] == [0, 1]
    assert comparison.facets == ("tiny on digits",)
    assert comparison.remarks == ()


def test_a_copy_of_a_run_counts_once_and_is_said(run_folders: SimpleNamespace, tmp_path: Path) -> None:
    path = run_folders.write("a")
    shutil.copytree(path, tmp_path / "copies" / "a")
    comparison = read_comparison([tmp_path / "copies", run_folders.root])
    assert [run.path for run in comparison.runs] == [tmp_path / "copies" / "a"]
    assert str(path) in remark(comparison, "settings and seed")


def test_of_a_finished_run_and_its_unfinished_copy_the_finished_one_counts(
    run_folders: SimpleNamespace, tmp_path: Path
) -> None:
    path = run_folders.write("a")
    shutil.copytree(path, tmp_path / "copies" / "a")
    (tmp_path / "copies" / "a" / "summary.json").unlink()
    [run] = read_comparison([tmp_path / "copies", run_folders.root]).runs
    assert run.path == path
    assert run.summary is not None


def test_of_two_unfinished_copies_the_one_that_has_come_further_counts(
    run_folders: SimpleNamespace, tmp_path: Path
) -> None:
    path = run_folders.write("a", finished=False)
    shutil.copytree(path, tmp_path / "copies" / "a")
    lines = (path / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "copies" / "a" / "trials.jsonl").write_text(lines[0])
    [run] = read_comparison([tmp_path / "copies", run_folders.root]).runs
    assert run.path == path


def test_two_runs_of_one_folder_name_are_told_apart_by_where_they_lie(
    run_folders: SimpleNamespace, tmp_path: Path
) -> None:
    run_folders.write("a", settings={"seed": 1})
    shutil.move(run_folders.root / "a", tmp_path / "elsewhere" / "a")
    run_folders.write("a")
    run_folders.write("b", settings={"seed": 2})
    comparison = read_comparison([run_folders.root, tmp_path / "elsewhere"])
    assert [run.name for run in comparison.runs] == [f"{run_folders.root.name}/a", "b", "elsewhere/a"]
    assert set(comparison.trials["run"]) == {run.name for run in comparison.runs}


def test_the_same_run_timed_on_two_devices_is_two_results(run_folders: SimpleNamespace) -> None:
    for name, device in (("a", "one"), ("b", "two")):
        rows = [run_folders.network("compressed", 0.5, device=device)]
        run_folders.write(name, dense=run_folders.network("dense", device=device), rows=rows)
    comparison = read_comparison([run_folders.root])
    assert len(comparison.runs) == 2
    assert "latencies of 2 devices are drawn apart: one; two" in remark(comparison, "devices")


def test_what_is_inside_a_run_is_no_run_and_result_pages_are_passed_over(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a")
    shutil.copytree(path, path / "stage1-0.5")
    page = run_folders.root / "resnet56-families"
    page.mkdir()
    (page / "README.md").write_text("ours")
    (run_folders.root / "multirun.yaml").write_text("hydra: {}")
    comparison = read_comparison([run_folders.root])
    assert [run.name for run in comparison.runs] == ["a"]
    assert comparison.remarks == ()


def test_latency_reports_are_passed_over_and_runs_without_a_trial_are_named(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    for name in ("latency-tiny-digits-torch", "amc-waiting"):
        (run_folders.write(name, finished=False) / "trials.jsonl").unlink()
    comparison = read_comparison([run_folders.root])
    assert [run.name for run in comparison.runs] == ["a"]
    assert comparison.remarks == ("1 run has not begun to search: amc-waiting",)


def test_the_trials_of_stages_follow_each_other_in_number_and_time(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a")
    for stage, accuracy in (("stage1-0.5", 0.9), ("stage2-0.2", 0.8), ("stage10-0.1", 0.7)):
        (path / stage).mkdir()
        rows = [run_folders.trial(index, accuracy) for index in range(3)]
        (path / stage / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "trials.jsonl").unlink()
    summary = json.loads((path / "summary.json").read_text())
    summary["search_cost"]["num_trials"] = 9
    (path / "summary.json").write_text(json.dumps(summary))
    trials = read_comparison([path]).trials
    assert list(trials["index"]) == list(range(9))
    assert list(trials["wall_s"]) == [10.0 * number for number in range(1, 10)]
    assert list(trials["accuracy"]) == [0.9] * 3 + [0.8] * 3 + [0.7] * 3


# --- What is not there, or damaged ------------------------------------------------------------------------------------


def test_a_path_without_a_run_is_refused_in_one_line_that_names_it(
    run_folders: SimpleNamespace, tmp_path: Path
) -> None:
    run_folders.write("a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path, why in (
        (tmp_path / "no", "does not exist"),
        (tmp_path / "file", "not a folder"),
        (tmp_path / "empty", "config.yaml"),
    ):
        with pytest.raises(ValueError, match=why) as refused:
            read_comparison([run_folders.root, path])
        assert str(path) in str(refused.value)
        assert "; name" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_folder_in_which_no_run_has_begun_is_refused(run_folders: SimpleNamespace) -> None:
    (run_folders.write("a", finished=False) / "trials.jsonl").unlink()
    with pytest.raises(ValueError, match=r"needs a run that has begun to search, but .*results holds none; name"):
        read_comparison([run_folders.root])
    with pytest.raises(ValueError, match="no path"):
        read_comparison([])


def test_unfinished_runs_count_with_their_trials_and_are_named(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", "random", finished=False)
    comparison = read_comparison([run_folders.root])
    assert "1 of 2 runs is unfinished" in remark(comparison, "unfinished")
    assert remark(comparison, "unfinished").endswith("no final networks: b")
    assert set(comparison.trials["run"]) == {"a", "b"}
    assert set(comparison.networks.query("stage != 'dense'")["run"]) == {"a"}
    assert set(comparison.kept["run"]) == {"a"}


def test_many_unfinished_runs_are_counted_and_only_some_named(run_folders: SimpleNamespace) -> None:
    for seed in range(9):
        run_folders.write(f"run{seed}", finished=False, settings={"seed": seed})
    text = remark(read_comparison([run_folders.root]), "unfinished")
    assert text.startswith("9 of 9 runs are unfinished")
    assert text.endswith("run4, run5 and 3 more")


def test_a_truncated_trials_file_gives_what_is_whole_and_says_what_is_lost(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a", finished=False)
    content = (path / "trials.jsonl").read_bytes()
    (path / "trials.jsonl").write_bytes(content[:-30])
    comparison = read_comparison([path])
    assert len(comparison.trials) == 2
    text = remark(comparison, "can't be read")
    assert f"line 3 of {path / 'trials.jsonl'}, the last one," in text
    assert "2 trials" in text


def test_lines_of_rubbish_in_a_trials_file_are_left_out_and_counted(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a", finished=False)
    good = (path / "trials.jsonl").read_bytes().splitlines()
    bad = [b"\x00\x00", b"[]", b"7", b"\xff\xfe", b'{"index": 1}', good[1].replace(b'"0-15"', b'"x"')]
    (path / "trials.jsonl").write_bytes(b"\n".join([good[0], *bad, good[2]]) + b"\n")
    comparison = read_comparison([path])
    assert list(comparison.trials["wall_s"]) == [10.0, 30.0]
    assert list(comparison.trials["index"]) == [0, 1]
    assert "6 lines from line 2 on" in remark(comparison, "can't be read")


def test_trials_that_a_finished_run_has_lost_are_said(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a")
    lines = (path / "trials.jsonl").read_text().splitlines(keepends=True)
    (path / "trials.jsonl").write_text(lines[0])
    assert "holds 1 of the run's 3 trials" in remark(read_comparison([path]), "holds")
    (path / "trials.jsonl").unlink()
    comparison = read_comparison([path])
    assert "holds 0 of the run's 3 trials" in remark(comparison, "holds")
    assert len(comparison.networks) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"networks": ["a"]}',
        pytest.param("macs", id="text for a number"),
        pytest.param("search_cost", id="a list for a mapping"),
    ],
)
def test_an_unreadable_summary_makes_a_run_unfinished(run_folders: SimpleNamespace, content: bytes | str) -> None:
    path = run_folders.write("a")
    if isinstance(content, str):
        summary = json.loads((path / "summary.json").read_text())
        if content == "macs":
            summary["networks"][1]["macs"] = "many"
        else:
            summary[content] = []
        content = json.dumps(summary).encode()
    (path / "summary.json").write_bytes(content)
    comparison = read_comparison([path])
    assert comparison.runs[0].summary is None
    assert str(path / "summary.json") in remark(comparison, "counts as unfinished")
    assert len(comparison.trials) == 3
    assert comparison.networks.empty


@pytest.mark.parametrize("content", ["", "- 1", "searcher: amc", "searcher: {_target_: 3}", "a: [", "\x00"])
def test_a_folder_with_a_foreign_configuration_is_left_out_and_said(run_folders: SimpleNamespace, content: str) -> None:
    run_folders.write("a")
    other = run_folders.write("b")
    (other / "config.yaml").write_text(content)
    comparison = read_comparison([run_folders.root])
    assert [run.name for run in comparison.runs] == ["a"]
    assert str(other) in remark(comparison, "left out")


def test_an_unreadable_policy_takes_its_kept_channels_alone(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a")
    (path / "policy.json").write_text("{")
    comparison = read_comparison([path])
    assert comparison.kept.empty
    assert len(comparison.networks) == 3
    assert str(path) in remark(comparison, "policy can't be read")


def test_runs_of_earlier_versions_are_read_and_named(run_folders: SimpleNamespace) -> None:
    run_folders.write("new")
    missing = dict.fromkeys(
        ("variant", "trials", "runtime", "budget.cost_ratios", "space.skip_blocks"), run_folders.absent
    )
    path = run_folders.write("old", settings={"seed": 1, **missing})
    summary = json.loads((path / "summary.json").read_text())
    for key in ("variant", "machine", "groups", "family"):
        del summary[key]
    del summary["search_cost"]["cpu_s"]
    (path / "summary.json").write_text(json.dumps(summary))
    comparison = read_comparison([run_folders.root])
    assert labels(comparison) == {"new": "amc", "old": "amc"}
    assert remark(comparison, "every setting of the others").endswith("as in the others: old")
    assert math.isnan(comparison.networks.query("run == 'old'")["cpu_s"].iloc[0])


@pytest.mark.parametrize(
    ("target", "trains_network"),
    [
        ("searchers.proxylessnas.ProxylessNAS", True),
        ("searchers.random_search.RandomSearch", False),
        ("nobody.has.this.Searcher", False),
    ],
)
def test_a_searcher_that_takes_a_supernet_trains_a_network(
    run_folders: SimpleNamespace, target: str, trains_network: bool
) -> None:
    path = run_folders.write("a")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["searcher"]["_target_"] = target
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    [run] = read_comparison([path]).runs
    assert run.trains_network is trains_network


def test_a_bare_configuration_raises_nothing(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a", finished=False)
    (path / "config.yaml").write_text("searcher: {_target_: mine.Own}")
    [run] = read_comparison([path]).runs
    assert (run.searcher, run.facet, run.seed) == ("mine", "None on None", 0)


# --- Facets -----------------------------------------------------------------------------------------------------------


def test_runs_of_other_networks_and_datasets_have_facets_of_their_own(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", settings={"model.name": "large"})
    run_folders.write("c", settings={"dataset.name": "cifar10"})
    comparison = read_comparison([run_folders.root])
    assert comparison.facets == ("tiny on digits", "large on digits", "tiny on cifar10")
    assert comparison.remarks == ()


def test_networks_of_one_name_that_differ_are_told_apart_by_what_differs(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", dense=run_folders.network("dense", accuracy=0.975))
    comparison = read_comparison([run_folders.root])
    assert comparison.facets == ("tiny on digits (dense 94%)", "tiny on digits (dense 96.5%)")
    assert remark(comparison, "drawn apart").endswith("as their dense networks differ: dense 94%; dense 96.5%")


def test_networks_of_one_accuracy_are_told_apart_by_their_costs(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", dense=run_folders.network("dense", 2.0))
    assert read_comparison([run_folders.root]).facets == (
        "tiny on digits (1M MACs, 1,000 parameters)",
        "tiny on digits (2M MACs, 2,000 parameters)",
    )


def test_an_unfinished_run_goes_where_its_weights_are(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write(
        "b", settings={"model.weights": "/else/tuned.pt"}, dense=run_folders.network("dense", accuracy=0.975)
    )
    for name, seed in (("0", 0), ("c", 1)):
        settings = {"model.weights": "/here/tuned.pt", "seed": seed}
        run_folders.write(name, "random", settings=settings, finished=False)
    run_folders.write("d", "random", settings={"model.weights": "third.pt"}, finished=False)
    facets = {run.name: run.facet for run in read_comparison([run_folders.root]).runs}
    assert facets["0"] == facets["c"] == facets["b"] == "tiny on digits (dense 96.5%)"
    assert facets["d"] == "tiny on digits (unfinished, weights third.pt)"


def test_equal_networks_share_a_facet_wherever_their_weights_lie(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", settings={"model.weights": "/one/tiny.pt"})
    run_folders.write("b", settings={"model.weights": "/two/best.pt", "seed": 1})
    run_folders.write("0", settings={"model.weights": "best.pt", "seed": 2}, finished=False)
    comparison = read_comparison([run_folders.root])
    assert comparison.facets == ("tiny on digits",)
    assert set(labels(comparison).values()) == {"amc"}


def test_seeds_that_trained_their_own_networks_share_a_facet_and_it_is_said(run_folders: SimpleNamespace) -> None:
    for seed, accuracy in ((0, 0.95), (1, 0.96)):
        for searcher in ("amc", "random"):
            settings = {"model.weights": "trained", "seed": seed}
            run_folders.write(
                f"{searcher}{seed}", searcher, settings=settings, dense=run_folders.network("dense", accuracy=accuracy)
            )
    comparison = read_comparison([run_folders.root])
    assert comparison.facets == ("tiny on digits",)
    assert "(94–95% on the test split)" in remark(comparison, "each seed trained")
    assert list(comparison.networks.query("stage == 'dense'")["accuracy_test"]) == [0.94, 0.95]


def test_one_seed_that_trained_two_networks_splits_them(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", settings={"model.weights": "trained"})
    run_folders.write("b", settings={"model.weights": "trained"}, dense=run_folders.network("dense", accuracy=0.975))
    assert len(read_comparison([run_folders.root]).facets) == 2


def test_networks_trained_by_other_recipes_are_drawn_apart(run_folders: SimpleNamespace) -> None:
    for seed, epochs, accuracy in ((0, 30, 0.95), (1, 60, 0.97)):
        settings = {"model.weights": "trained", "pretrain.epochs": epochs, "seed": seed}
        run_folders.write(f"seed{seed}", settings=settings, dense=run_folders.network("dense", accuracy=accuracy))
    assert len(read_comparison([run_folders.root]).facets) == 2


def test_searches_that_train_their_own_weights_share_a_facet_without_a_dense_accuracy(
    run_folders: SimpleNamespace,
) -> None:
    rows = [run_folders.network("compressed", 0.5), run_folders.network("uniform", 0.5)]
    for searcher, accuracy in (("amc", 0.3), ("random", 0.1)):
        dense = run_folders.network("dense", accuracy=accuracy)
        run_folders.write(searcher, searcher, settings={"model.weights": "random"}, dense=dense, rows=rows)
    comparison = read_comparison([run_folders.root])
    assert comparison.facets == ("tiny on digits",)
    assert list(comparison.networks["stage"]) == ["dense", "before", "before"]
    assert comparison.networks["accuracy_test"].isna().tolist() == [True, False, False]
    assert "no one dense network" in remark(comparison, "weights of its own")


# --- Series -----------------------------------------------------------------------------------------------------------


def test_seeds_budgets_and_folders_make_no_series(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", settings={"seed": 1, "device": "cpu", "budget.label": "x"})
    run_folders.write("c", settings={"budget.cost_ratio": 0.3, "trials": 7})
    assert set(labels(read_comparison([run_folders.root])).values()) == {"amc"}


def test_the_most_common_settings_keep_the_bare_name_and_others_say_what_differs(run_folders: SimpleNamespace) -> None:
    for seed in range(2):
        run_folders.write(f"usual{seed}", settings={"seed": seed, "searcher.warmup_episodes": 1})
    none = {"_target_": "backends.recovery.NoRecovery"}
    run_folders.write("recover", settings={"recover": none, "finalist.recover": none})
    run_folders.write("epochs", settings={"finetune.epochs": 0})
    run_folders.write("trials", settings={"searcher.num_steps": 400, "trials": 400, "searcher.warmup_episodes": 100})
    run_folders.write("state", settings={"searcher.state": "released"})
    run_folders.write("space", settings={"space.coupled": False})
    assert labels(read_comparison([run_folders.root])) == {
        "usual0": "amc",
        "usual1": "amc",
        "recover": "amc, recover=none",
        "epochs": "amc, finetune.epochs=0",
        "trials": "amc, trials=400",
        "state": "amc, state=released",
        "space": "amc, space=inner",
    }


def test_at_most_two_settings_are_named_unless_it_takes_more_to_tell_runs_apart(run_folders: SimpleNamespace) -> None:
    for seed in range(3):
        run_folders.write(f"usual{seed}", settings={"seed": seed})
    two = {"searcher.state": "released", "finetune.epochs": 0}
    run_folders.write("three", settings={**two, "space.divisor": 4})
    assert labels(read_comparison([run_folders.root]))["three"] == "amc, state=released, space.divisor=4, …"
    run_folders.write("other", settings={**two, "space.divisor": 4, "finalist.num": 1})
    found = labels(read_comparison([run_folders.root]))
    assert found["three"] == "amc, state=released, space.divisor=4, finetune.epochs=0"
    assert found["other"] == "amc, state=released, space.divisor=4, finalist.num=1, finetune.epochs=0"


def test_what_does_nothing_without_fine_tuning_is_not_named(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", settings={"finetune.epochs": 0})
    run_folders.write("b", settings={"finetune.epochs": 0, "finetune.lr": 0.1, "seed": 1})
    assert set(labels(read_comparison([run_folders.root])).values()) == {"amc"}


def test_a_variant_names_the_settings_it_is_made_of(run_folders: SimpleNamespace) -> None:
    run_folders.write("usual")
    for seed in range(2):
        run_folders.write(f"bn{seed}", settings={"variant": "released", "searcher.state": "released", "seed": seed})
    found = labels(read_comparison([run_folders.root]))
    assert found == {"usual": "amc", "bn0": "amc, released", "bn1": "amc, released"}
    run_folders.write("other", settings={"variant": "released", "searcher.state": "paper"})
    assert labels(read_comparison([run_folders.root]))["other"] == "amc, released, state=paper"


def test_a_family_is_a_series_beside_single_budgets_only(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", "legr", settings={"budget.cost_ratios": [0.7, 0.3]})
    assert labels(read_comparison([run_folders.root])) == {"a": "legr"}
    run_folders.write("b", "legr")
    assert labels(read_comparison([run_folders.root])) == {"a": "legr, family", "b": "legr"}


def test_a_budget_of_another_resource_is_a_series_of_its_own(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", "random")
    run_folders.write("c", settings={"budget.resource": "latency_ms"})
    run_folders.write("d", settings={"budget.resource": "macs", "budget.cost_ratio": None}, finished=False)
    comparison = read_comparison([run_folders.root])
    found = labels(comparison)
    assert found == {"a": "amc", "b": "random", "c": "amc, latency budget", "d": "amc, no budget"}
    assert remark(comparison, "several resources").endswith("it is of FLOPs (MACs)")


def test_settings_that_bare_series_do_not_share_are_said(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", "random", settings={"finetune.epochs": 0})
    text = remark(read_comparison([run_folders.root]), "shared settings")
    assert text == "in tiny on digits searchers differ in shared settings too: finetune.epochs is 2, but 0 for random"


def test_no_series_mixes_settings_however_alike_their_names(run_folders: SimpleNamespace) -> None:
    for index, end in enumerate("abc"):
        run_folders.write(end, settings={"seed": index, "searcher.state": f"{'x' * 40}{end}"})
    assert len(set(labels(read_comparison([run_folders.root])).values())) == 3


def test_settings_are_those_that_differ_within_the_facet(run_folders: SimpleNamespace) -> None:
    run_folders.write("a")
    run_folders.write("b", "random", settings={"seed": 3, "finetune.epochs": 0})
    run_folders.write("c", settings={"model.name": "large", "searcher.state": "released"})
    found = {run.name: dict(run.settings) for run in read_comparison([run_folders.root]).runs}
    assert found["a"] == {"searcher": "amc", "finetune.epochs": 2, "seed": 0}
    assert found["b"] == {"searcher": "random", "finetune.epochs": 0, "seed": 3}
    assert found["c"] == {}


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_a_command_is_what_was_typed(run_folders: SimpleNamespace) -> None:
    path = run_folders.write("a")
    (path / "overrides.yaml").write_text(yaml.safe_dump(["searcher=amc", "budget.cost_ratios=[0.7, 0.3]", "seed=0"]))
    [run] = read_comparison([path]).runs
    assert run.command == "python -m compsearch searcher=amc 'budget.cost_ratios=[0.7, 0.3]' seed=0"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "budget=macs budget.cost_ratio=0.5"),
        ({"budget.resource": "latency_ms"}, "budget=latency budget.cost_ratio=0.5"),
        ({"budget.limit": 1000.0}, "budget=macs budget.limit=1000.0 budget.cost_ratio=null"),
        ({"budget.cost_ratios": [0.7, 0.3]}, "budget=macs 'budget.cost_ratios=[0.7,0.3]'"),
        ({"budget.cost_ratio": None}, "budget=unlimited"),
    ],
)
def test_without_what_was_typed_a_command_has_the_main_choices(
    run_folders: SimpleNamespace, settings: dict[str, object], said: str
) -> None:
    path = run_folders.write("a", finished=False, settings={**settings, "seed": 2})
    (path / "overrides.yaml").write_text("{")
    [run] = read_comparison([path]).runs
    assert run.command == (
        f"python -m compsearch searcher=amc model=tiny dataset=digits {said} seed=2  "
        f"# and the rest of {path / 'config.yaml'}"
    )
