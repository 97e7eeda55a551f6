"""A table measures what is missing, keeps it in a file people can read, and guesses nothing."""

import csv

import pytest

from backends.latency_table import Entry, LatencyTable, spread_over, table_path
from backends.layer_shapes import LayerShape

CONV = LayerShape("conv", (3, 3), (1, 1), (1, 1), (1, 1), 8, 8, 0, 0, False, "batch_norm", "relu")
DEPTHWISE = LayerShape("depthwise", (3, 3), (2, 2), (1, 1), (1, 1), 8, 8, 1, 1, True, "", "")
LINEAR = LayerShape("linear", (), (), (), (), 1, 1, 0, 0, True, "", "sigmoid")
ENTRIES = [Entry(CONV, 4, 8), Entry(DEPTHWISE, 6, 6), Entry(LINEAR, 5, 3)]
QUICK = {"samples": 1, "min_sample_us": 1.0, "rounds": 1}


def test_times_are_those_of_the_layers(tmp_path, fake_meter):
    table = LatencyTable(tmp_path / "table.csv", fake_meter())
    table.measure(ENTRIES, **QUICK)
    assert [table[entry].median_us for entry in ENTRIES] == pytest.approx([4 * 8 * 9, 6 * 9, 15])


def test_what_was_measured_is_read_back_and_not_measured_again(tmp_path, fake_meter):
    path = tmp_path / "table.csv"
    LatencyTable(path, fake_meter()).measure(ENTRIES[:2], **QUICK)
    again = LatencyTable(path, fake_meter(lambda layer: 1.0))
    again.measure(ENTRIES, **QUICK)
    assert again.meter.runtime.prepared == 1
    assert [again[entry].median_us for entry in ENTRIES] == pytest.approx([288, 54, 1e6])


def test_an_interrupted_measurement_keeps_what_it_had(tmp_path, fake_meter):
    entries = [Entry(CONV, 4, outs) for outs in range(1, 101)]

    def breaks(layer):
        if layer.out_channels == 90:
            raise KeyboardInterrupt
        return 1e-6

    table = LatencyTable(tmp_path / "table.csv", fake_meter(breaks))
    with pytest.raises(KeyboardInterrupt):
        table.measure(entries, **QUICK)
    assert len(LatencyTable(tmp_path / "table.csv", fake_meter()).times) == 64


def test_the_fastest_round_stands(tmp_path, fake_meter, clock):
    slow_until = 1e-3
    meter = fake_meter(threads=2)  # with one, the stopwatch itself repeats what was disturbed
    clock.others = [slow_until] * 4
    table = LatencyTable(tmp_path / "table.csv", meter)
    table.measure(ENTRIES[:1], samples=1, min_sample_us=1.0, rounds=3)
    assert table[ENTRIES[0]].median_us == pytest.approx(288)


def test_the_file_has_named_columns_with_units(tmp_path, fake_meter):
    path = tmp_path / "table.csv"
    LatencyTable(path, fake_meter()).measure(ENTRIES, **QUICK)
    lines = path.read_text().splitlines()
    assert '"runtime": "fake"' in lines[0]
    rows = list(csv.DictReader(lines[2:]))
    assert rows[0]["kind"] == "conv"
    assert (rows[0]["kernel"], rows[0]["in_channels"], rows[0]["out_channels"]) == ("3x3", "4", "8")
    assert float(rows[0]["median_us"]) == pytest.approx(288)


def test_a_missing_entry_is_refused_not_guessed(tmp_path, fake_meter):
    table = LatencyTable(tmp_path / "table.csv", fake_meter())
    table.measure(ENTRIES[:1], **QUICK)
    with pytest.raises(ValueError, match=r"has no conv of 4 inputs and 9 outputs at 8x8; measure it"):
        table[Entry(CONV, 4, 9)]


def test_a_table_of_another_device_is_refused(tmp_path, fake_meter):
    path = tmp_path / "table.csv"
    LatencyTable(path, fake_meter()).measure(ENTRIES, **QUICK)
    with pytest.raises(ValueError, match=r"must be a table of this device and runtime, but differs in threads 1 / 2"):
        LatencyTable(path, fake_meter(threads=2))


@pytest.mark.parametrize("text", ["", "nonsense\n", '# {"runtime": "fake"}\n#\nkind\nconv\n'])
def test_a_file_that_is_no_table_is_refused_and_left_as_it_is(tmp_path, fake_meter, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"must be a latency table"):
        LatencyTable(path, fake_meter())
    assert path.read_text() == text


def test_devices_have_files_of_their_own(tmp_path, fake_meter):
    names = {
        table_path(tmp_path, fake_meter(**change).fingerprint) for change in ({}, {"threads": 2}, {"batch_size": 8})
    }
    assert len(names) == 3


def test_spread_widths_are_few_ascending_and_keep_both_ends():
    assert spread_over([1, 2, 3], 9) == [1, 2, 3]
    picked = spread_over(list(range(8, 968, 8)), 9)
    assert (len(picked), picked[0], picked[-1]) == (9, 8, 960)
    assert picked == sorted(set(picked))
