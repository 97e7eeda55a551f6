"""What the summary, the table and the plots say of resources beside macs, params and latency."""

from __future__ import annotations

import json

import pytest

from compsearch.report.family_plot import family_figure
from compsearch.report.run_plots import network_points
from compsearch.report.table import summary_table
from compsearch.summary import FamilyMember, Latency, NetworkRow, SearchCost, Summary

DENSE_COSTS = {"peak_activation_bytes": 196_608.0, "energy_mj": 0.4297, "latency_ms": 3.0}
COSTS = {"peak_activation_bytes": 98_304.0, "energy_mj": 0.1074, "latency_ms": 1.5}


def summary(dense: dict[str, float], compressed: dict[str, float]) -> Summary:
    rows = (
        NetworkRow("dense", 2e6, 1000, 0.95, 0.94, 0.99, costs=dense),
        NetworkRow("compressed", 1e6, 400, 0.9, 0.89, 0.98, costs=compressed),
    )
    return Summary(
        run_name="r",
        searcher="Random",
        model="m",
        dataset="d",
        seed=0,
        budget=("energy_mj", 0.25),
        networks=rows,
        search_cost=SearchCost(1, 0, 10, 1.0),
        family=(FamilyMember(0.25, rows[1:]),),
    )


def test_costs_survive_json_with_their_ratios_beside_them() -> None:
    given = summary(DENSE_COSTS, COSTS)
    data = json.loads(json.dumps(given.to_json()))
    assert Summary.from_json(data) == given
    assert data["networks"][1]["costs"] == COSTS
    ratios = data["networks"][1]["cost_ratios"]
    assert ratios == pytest.approx(
        {"macs": 0.5, "params": 0.4, "peak_activation_bytes": 0.5, "energy_mj": 0.25}, rel=1e-3
    )


def test_summaries_from_before_there_were_other_resources_load() -> None:
    data = summary({}, {}).to_json()
    for row in (*data["networks"], *data["family"][0]["networks"]):
        del row["costs"]
    assert Summary.from_json(data) == summary({}, {})


def test_the_table_labels_them_with_units_and_calls_energy_analytic() -> None:
    lines = summary_table(summary(DENSE_COSTS, COSTS)).splitlines()
    [memory] = [line for line in lines if line.startswith("peak activation memory")]
    assert memory.split() == ["peak", "activation", "memory", "196.6", "kB", "98.3", "kB", "(0.500)"]
    [energy] = [line for line in lines if line.startswith("energy (analytic)")]
    assert energy.split() == ["energy", "(analytic)", "0.4297", "mJ", "0.1074", "mJ", "(0.250)"]
    assert "budget 0.25 of energy (analytic)" in lines[0]
    # A predicted latency is not what the table calls latency.
    assert not any(line.startswith("latency") for line in lines)
    [member] = [line for line in lines if line.startswith("0.25 ")]
    assert member.split()[-5:] == ["0.500", "0.400", "0.500", "0.250", "–"]


def test_the_table_of_a_run_without_them_does_not_name_them() -> None:
    assert "energy" not in summary_table(summary({}, {})).split("\n", 1)[1]


def test_points_are_at_the_ratio_of_any_resource_that_is_known() -> None:
    rows = summary(DENSE_COSTS, COSTS).networks
    for resource, ratio in (("macs", 0.5), ("params", 0.4), ("peak_activation_bytes", 0.5)):
        points = network_points(rows, "search", resource)
        assert [(point.name, point.cost_ratio) for point in points] == [("dense", 1.0), ("compressed", ratio)]
    assert network_points(rows, "search", "latency_ms") == []


def test_the_family_is_drawn_at_its_ratios_of_any_resource() -> None:
    figure = family_figure(summary(DENSE_COSTS, COSTS), resource="energy_mj", title="t")
    drawn = {
        collection.get_label(): collection.get_offsets().tolist()[0][0] for collection in figure.axes[0].collections
    }
    assert drawn == pytest.approx({"dense": 1.0, "Random": 0.25}, rel=1e-3)
    assert "energy (analytic)" in figure.axes[0].get_xlabel()


def test_a_latency_ratio_is_of_two_measured_latencies() -> None:
    dense, other = summary(DENSE_COSTS, COSTS).networks
    timed = [
        NetworkRow(row.name, row.macs, row.params, 0.9, latency=Latency(ms, ms, ms, "cpu"), costs=row.costs)
        for row, ms in ((dense, 4.0), (other, 3.0))
    ]
    assert timed[1].ratios(timed[0])["latency_ms"] == 0.75
    assert "latency_ms" not in timed[1].ratios(dense)
