import json
from types import SimpleNamespace

import pandas as pd
import pytest

from compsearch.comparison.comparison import KEPT_COLUMNS, NETWORK_COLUMNS, TRIAL_COLUMNS
from compsearch.comparison.runs import read_comparison
from compsearch.summary import FamilyMember, NetworkRow

FAMILY = {"budget.cost_ratios": [0.7, 0.3]}


def write_family(run_folders: SimpleNamespace, name: str = "legr", **more: object) -> None:
    low = (run_folders.network("compressed", 0.29, 0.8), run_folders.network("fine-tuned", 0.29, 0.85))
    high = (run_folders.network("compressed", 0.69, 0.9), run_folders.network("uniform", 0.7, 0.88))
    run_folders.write(
        name,
        "legr",
        settings={**FAMILY, **more},
        rows=low,
        family=[FamilyMember(0.7, high), FamilyMember(0.3, low)],
        trials=[run_folders.trial(index, cost_ratio=0.29) for index in range(3)]
        + [run_folders.trial(3, cost_ratio=0.69)],
        policies={0.7: run_folders.policy(12, 6), 0.3: run_folders.policy(4, 2)},
    )


def test_tables_have_their_columns_and_types_with_and_without_rows(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", finished=False, trials=[])
    empty = read_comparison([run_folders.root])
    run_folders.write("b")
    full = read_comparison([run_folders.root])
    for comparison in (empty, full):
        for frame, columns in (
            (comparison.networks, NETWORK_COLUMNS),
            (comparison.trials, TRIAL_COLUMNS),
            (comparison.kept, KEPT_COLUMNS),
        ):
            assert tuple(frame.columns) == columns
            assert frame["seed"].dtype == "int64"
            assert frame["budget"].dtype == "float64"
            assert pd.api.types.is_string_dtype(frame["series"].dtype)
        assert comparison.networks["is_learned_elsewhere"].dtype == "bool"
        assert comparison.networks["latency_ms"].dtype == "float64"
        assert comparison.trials["objective"].dtype == "float64"
    assert empty.networks.empty
    assert len(full.networks) == 3


def test_a_run_has_a_row_before_and_after_fine_tuning_and_the_dense_network_one(run_folders: SimpleNamespace) -> None:
    rows = [run_folders.network("compressed", 0.48, 0.9, timed=0.6), run_folders.network("fine-tuned", 0.48, 0.92)]
    run_folders.write("a", rows=rows)
    run_folders.write("b", "random")
    networks = read_comparison([run_folders.root]).networks
    assert list(networks["stage"]) == ["dense", "before", "after", "before", "after"]
    assert list(networks["series"]) == ["dense", "amc", "amc", "random", "random"]
    dense, before, after = (networks.iloc[index] for index in range(3))
    assert (dense["accuracy_test"], dense["macs_ratio"], dense["latency_ratio"]) == (0.94, 1.0, 1.0)
    assert (dense["resource"], dense["trials"], dense["wall_s"]) == ("", 0, 0.0)
    assert pd.isna(dense["budget"])
    assert (before["resource"], before["budget"], before["macs"], before["macs_ratio"]) == ("macs", 0.5, 480000, 0.48)
    assert (before["accuracy_search"], before["accuracy_test"], before["top5_test"]) == (0.9, 0.89, 0.99)
    assert (before["params"], before["params_ratio"], before["device"]) == (480, 0.48, run_folders.device)
    assert (before["trials"], before["images"], before["wall_s"], before["cpu_s"]) == (3, 840, 30.0, 25.0)
    assert (before["latency_ratio"], before["latency_p10"], before["latency_p90"]) == pytest.approx((0.6, 0.5, 0.7))
    # Not timed in turns: a quotient of medians, whose spread nobody knows.
    assert after["latency_ratio"] == pytest.approx(0.48)
    assert pd.isna(after["latency_p10"])
    assert after["accuracy_test"] == pytest.approx(0.91)


def test_a_latency_that_was_not_measured_is_nan(run_folders: SimpleNamespace) -> None:
    run_folders.write(
        "a", dense=run_folders.network("dense", device=""), rows=[run_folders.network("compressed", 0.5, device="")]
    )
    row = read_comparison([run_folders.root]).networks.iloc[1]
    assert row["device"] == ""
    assert row[["latency_ms", "latency_ratio", "latency_p10"]].isna().all()


def test_the_dense_network_is_timed_on_the_usual_device(run_folders: SimpleNamespace) -> None:
    for index, device in enumerate(["rare", "usual", "usual"]):
        rows = [run_folders.network("compressed", 0.5, device=device)]
        run_folders.write(
            f"run{index}", settings={"seed": index}, dense=run_folders.network("dense", device=device), rows=rows
        )
    networks = read_comparison([run_folders.root]).networks
    [dense] = networks.query("stage == 'dense'").to_dict("records")
    assert (dense["device"], dense["run"]) == ("usual", "run1")
    assert list(networks.query("stage == 'before'")["device"]) == ["rare", "usual", "usual"]


def test_each_member_of_a_family_stands_once_at_its_own_budget(run_folders: SimpleNamespace) -> None:
    write_family(run_folders)
    networks = read_comparison([run_folders.root]).networks.query("searcher == 'legr'")
    assert list(zip(networks["budget"], networks["stage"], networks["macs_ratio"], strict=True)) == [
        (0.7, "before", 0.69),
        (0.3, "before", 0.29),
        (0.3, "after", 0.29),
    ]
    assert list(networks["trials"]) == [3, 3, 3]


def test_a_familys_larger_networks_are_no_trials_of_its_search(run_folders: SimpleNamespace) -> None:
    write_family(run_folders)
    trials = read_comparison([run_folders.root]).trials
    assert list(trials["cost_ratio"]) == [0.29] * 3
    assert set(trials["budget"]) == {0.3}
    for path in run_folders.root.glob("*/summary.json"):
        path.unlink()
    assert list(read_comparison([run_folders.root]).trials["cost_ratio"]) == [0.29] * 3


def test_an_interrupted_family_keeps_all_of_its_search(run_folders: SimpleNamespace) -> None:
    rows = [run_folders.trial(index, cost_ratio=0.29) for index in range(3)]
    run_folders.write("a", "legr", settings=FAMILY, finished=False, trials=rows)
    assert len(read_comparison([run_folders.root]).trials) == 3


def test_a_failed_trial_has_no_accuracy_and_no_objective(run_folders: SimpleNamespace) -> None:
    over = {**run_folders.trial(1, accuracy=0.9), "objective": None, "failure": "over the budget"}
    run_folders.write(
        "a", finished=False, trials=[run_folders.trial(0, accuracy=0.7), over, run_folders.trial(2, accuracy=None)]
    )
    trials = read_comparison([run_folders.root]).trials
    assert trials["accuracy"].isna().tolist() == [False, True, True]
    assert trials["objective"].isna().tolist() == [False, True, True]
    row = trials.iloc[0]
    assert (row["accuracy"], row["macs"], row["params"], row["wall_s"], row["cpu_s"]) == (0.7, 500000, 500, 10.0, 9.0)


def test_trials_of_earlier_versions_have_no_processor_seconds(run_folders: SimpleNamespace) -> None:
    rows = [{key: value for key, value in run_folders.trial(0).items() if key != "cpu_s"}]
    run_folders.write("a", finished=False, trials=rows)
    assert read_comparison([run_folders.root]).trials["cpu_s"].isna().all()


def test_uniform_networks_of_other_runs_stand_in_where_there_is_no_uniform_run(run_folders: SimpleNamespace) -> None:
    rows = [
        run_folders.network("compressed", 0.5, 0.9),
        run_folders.network("fine-tuned", 0.5, 0.92),
        run_folders.network("uniform", 0.5, 0.8),
    ]
    run_folders.write("uniform0", "uniform")
    for seed in (0, 1):
        run_folders.write(f"amc{seed}", rows=rows, settings={"seed": seed})
        run_folders.write(f"random{seed}", "random", rows=rows, settings={"seed": seed})
    uniform = read_comparison([run_folders.root]).networks.query("series == 'uniform'")
    found = list(zip(uniform["run"], uniform["seed"], uniform["stage"], uniform["trials"], strict=True))
    assert found == [("uniform0", 0, "before", 3), ("uniform0", 0, "after", 3), ("amc1", 1, "before", 0)]


def test_uniform_networks_made_in_another_way_are_a_series_that_says_so(run_folders: SimpleNamespace) -> None:
    def rows(accuracy: float) -> list[NetworkRow]:
        return [run_folders.network("compressed", 0.5, 0.9), run_folders.network("uniform", 0.5, accuracy)]

    l1 = {"importance": {"_target_": "backends.importance.l1", "reduction": "sum"}}
    squared = {"importance": {"_target_": "backends.importance.squared_l2", "reduction": "sum"}}
    run_folders.write("uniform0", "uniform", rows=[run_folders.network("compressed", 0.5, 0.8)], settings=l1)
    run_folders.write("amc1", rows=rows(0.81), settings={"seed": 1, **l1})
    run_folders.write("legr0", "legr", rows=rows(0.84), settings=squared)
    run_folders.write("legr1", "legr", rows=rows(0.85), settings={"seed": 1, **squared})
    uniform = read_comparison([run_folders.root]).networks.query("searcher == 'uniform'")
    found = uniform.groupby("series")["accuracy_search"].apply(list).to_dict()
    assert found == {"uniform": [0.8, 0.81], "uniform, importance=squared_l2": [0.84, 0.85]}


def test_the_uniform_network_of_usual_settings_stands_in_before_that_of_others(run_folders: SimpleNamespace) -> None:
    for name, variant, accuracy in (("a", "recover_none", 0.1), ("b", "default", 0.7), ("c", "", 0.8)):
        rows = [run_folders.network("compressed", 0.5), run_folders.network("uniform", 0.5, accuracy)]
        run_folders.write(name, rows=rows, settings={"variant": variant})
        uniform = read_comparison([run_folders.root]).networks.query("series == 'uniform'")
        assert list(uniform["accuracy_search"]) == [accuracy]


def test_uniform_networks_of_a_family_stand_at_each_budget(run_folders: SimpleNamespace) -> None:
    write_family(run_folders)
    uniform = read_comparison([run_folders.root]).networks.query("series == 'uniform'")
    assert list(uniform["budget"]) == [0.7]


def test_a_search_that_used_anothers_learning_says_so(run_folders: SimpleNamespace) -> None:
    for name, teacher in (("first", "first"), ("second", "first")):
        budget = 0.3 if name == "first" else 0.5
        path = run_folders.write(name, "legr", settings={"budget.cost_ratio": budget})
        (path / "learned.json").write_text(json.dumps({"run": teacher, "cost_ratio": 0.3, "genome": {}}))
    networks = read_comparison([run_folders.root]).networks.query("stage == 'before'")
    assert dict(zip(networks["run"], networks["is_learned_elsewhere"], strict=True)) == {"first": False, "second": True}


def test_what_is_kept_is_told_group_by_group_in_the_networks_order(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", policies={None: run_folders.policy(8, 2)})
    kept = read_comparison([run_folders.root]).kept
    assert list(zip(kept["group"], kept["keep_ratio"], kept["budget"], strict=True)) == [
        ("conv1", 0.5, 0.5),
        ("layer1.0.conv1", 0.25, 0.5),
    ]


def test_every_member_of_a_family_tells_what_it_keeps(run_folders: SimpleNamespace) -> None:
    write_family(run_folders)
    kept = read_comparison([run_folders.root]).kept.set_index(["budget", "group"])["keep_ratio"]
    assert kept.to_dict() == {
        (0.7, "conv1"): 0.75,
        (0.7, "layer1.0.conv1"): 0.75,
        (0.3, "conv1"): 0.25,
        (0.3, "layer1.0.conv1"): 0.25,
    }


def test_groups_of_a_block_that_is_skipped_keep_nothing(run_folders: SimpleNamespace) -> None:
    run_folders.write("a", policies={None: run_folders.policy(8, 4, operations={"layer1.0": "zero"})})
    run_folders.write("b", "random", policies={None: run_folders.policy(8, 4, operations={"layer1.0": "keep"})})
    kept = read_comparison([run_folders.root]).kept.set_index(["run", "group"])["keep_ratio"]
    assert kept["a", "layer1.0.conv1"] == 0.0
    assert kept["b", "layer1.0.conv1"] == 0.5
    assert kept["a", "conv1"] == 0.5


def test_earlier_versions_groups_are_as_large_as_any_run_of_the_space_shows(run_folders: SimpleNamespace) -> None:
    narrow = {**run_folders.trial(0), "policy": run_folders.policy(10, 4)}
    run_folders.write("a", groups={}, trials=[narrow] * 3, policies={None: run_folders.policy(8, 4)})
    assert list(read_comparison([run_folders.root]).kept["keep_ratio"]) == [0.8, 1.0]
    run_folders.write("b", "random", finished=False)  # its trials kept 16 and 8
    assert list(read_comparison([run_folders.root]).kept["keep_ratio"]) == [0.5, 0.5]
    elsewhere = {**run_folders.trial(0), "policy": run_folders.policy(99, 99, space="other")}
    run_folders.write("c", "legr", finished=False, trials=[elsewhere])
    assert list(read_comparison([run_folders.root]).kept["keep_ratio"]) == [0.5, 0.5]
