import pytest
import torch
from torch import nn

from backends.energy_counters import EnergyReading, NoCounterError
from backends.latency import LatencyMeter
from backends.runtimes import TorchRuntime

IMAGE = torch.zeros(1, 3, 4, 4)


def linear(size):
    return nn.Linear(size, 1, bias=False)


def test_every_network_runs_once_a_round_and_the_warm_up_is_not_counted(fake_meter):
    meter = fake_meter()
    a, b = linear(2000), linear(4000)
    found = meter.measure({"a": a, "b": b}, IMAGE)
    rounds = [meter.runtime.runs[start : start + 2] for start in range(0, len(meter.runtime.runs), 2)]
    assert len(rounds) == 2 + 5
    assert all({id(network) for network in each} == {id(a), id(b)} for each in rounds)
    assert (found["a"].median_ms, found["b"].median_ms) == (pytest.approx(2), pytest.approx(4))
    assert found["a"].repetitions == 5


def test_ratios_are_to_the_first_network_within_a_round(fake_meter):
    found = fake_meter().measure({"dense": linear(4000), "half": linear(2000)}, IMAGE)
    assert found["dense"].relative.median == 1
    assert found["half"].relative.median == pytest.approx(0.5)


def test_a_machine_that_gets_slower_changes_the_times_but_not_the_ratios(clock, fake_meter):
    meter = fake_meter()
    meter.runtime.seconds = lambda layer: layer.weight.numel() * 1e-6 * (1 + clock.now)
    runs = {"dense": linear(4000), "half": linear(2000)}
    prepared = meter.runtime.prepare

    def drifting(network, images, *, threads):
        def run():
            prepared(network, images, threads=threads)()

        return run

    meter.runtime.prepare = drifting
    found = meter.measure(runs, IMAGE)
    assert found["dense"].p90_ms > 1.01 * found["dense"].p10_ms
    assert found["half"].relative.p90 - found["half"].relative.p10 < 0.01


def test_a_run_that_lost_time_to_other_programs_is_timed_again(clock, fake_meter):
    meter = fake_meter(warmup=0, repetitions=3)
    clock.others = [0.5, 0.0, 0.0, 0.0]
    found = meter.measure({"a": linear(1000)}, IMAGE)
    assert found["a"].p90_ms == pytest.approx(1)
    assert len(meter.runtime.runs) == 4


def test_on_a_machine_that_is_never_alone_the_shortest_of_a_few_stands(clock, fake_meter):
    meter = fake_meter(warmup=0, repetitions=1)
    clock.others = [0.5, 0.2, 0.3, 0.4]
    assert meter.measure({"a": linear(1000)}, IMAGE)["a"].median_ms == pytest.approx(201)


def test_several_threads_are_taken_as_they_are(clock, fake_meter):
    meter = fake_meter(warmup=0, repetitions=1, threads=2)
    clock.others = [0.5]
    assert meter.measure({"a": linear(1000)}, IMAGE)["a"].median_ms == pytest.approx(501)


def test_the_time_budget_ends_the_rounds_but_not_before_the_third(fake_meter):
    seconds = {"a": linear(1_000_000)}
    assert fake_meter(time_budget_s=4.5, repetitions=11).measure(seconds, IMAGE)["a"].repetitions == 5
    assert fake_meter(time_budget_s=0.0).measure(seconds, IMAGE)["a"].repetitions == 3


def test_threads_and_modes_come_back(fake_meter):
    before = torch.get_num_threads()
    network = linear(10).train()
    seen = []
    meter = fake_meter(threads=before + 1)
    meter.runtime.seconds = lambda layer: seen.append(torch.get_num_threads()) or 1e-3
    meter.measure({"a": network}, IMAGE)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    assert network.training


def test_a_batch_repeats_its_images_where_there_are_too_few(fake_meter):
    images = torch.arange(2.0).reshape(2, 1, 1, 1)
    assert fake_meter(batch_size=5).images(images).flatten().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"`latency.batch_size >= 1` must hold, but got batch_size=0"),
        ({"batch_size": -4}, r"`latency.batch_size >= 1` must hold"),
        ({"repetitions": 0}, r"`latency.repetitions >= 1` must hold"),
        ({"warmup": -1}, r"`latency.warmup >= 0` must hold"),
        ({"threads": 0}, r"`latency.threads >= 1` must hold"),
    ],
)
def test_impossible_settings_are_refused(fake_meter, change, message):
    with pytest.raises(ValueError, match=message):
        fake_meter(**change)


def test_the_device_goes_with_every_number(fake_meter):
    meter = fake_meter(batch_size=4)
    assert meter.measure({"a": linear(10)}, IMAGE)["a"].runtime == str(meter.fingerprint)
    assert "fake" in str(meter.fingerprint)
    assert "batch 4" in str(meter.fingerprint)


def test_a_real_network_takes_time():
    meter = LatencyMeter(
        runtime=TorchRuntime(channels_last=False),
        device=torch.device("cpu"),
        batch_size=1,
        threads=1,
        repetitions=3,
        warmup=1,
        time_budget_s=10,
    )
    found = meter.measure({"a": nn.Conv2d(3, 8, 3)}, IMAGE)["a"]
    assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms


def test_energy_is_read_where_there_is_a_counter_and_only_there(fake_meter, monkeypatch):
    meter = fake_meter()

    def none(device):
        raise NoCounterError("none here")

    monkeypatch.setattr("backends.latency.open_counter", none)
    assert meter.energies({"a": linear(10)}, IMAGE) == {}
    assert meter.runtime.prepared == 0
    monkeypatch.setattr("backends.latency.open_counter", lambda device: None)
    reading = EnergyReading(10.0, 2.0, 5, "RAPL", "package", None)
    monkeypatch.setattr("backends.latency.measure_energy", lambda run, *, device, min_s: reading)
    assert meter.energies({"a": linear(10), "b": linear(20)}, IMAGE) == {"a": reading, "b": reading}


def test_sessions_share_the_rounds_and_make_every_network_ready_anew(fake_meter):
    meter = fake_meter(sessions=2, repetitions=6, warmup=1)
    found = meter.measure({"a": linear(10), "b": linear(20)}, IMAGE)
    assert meter.runtime.prepared == 4
    assert found["a"].repetitions == 6
    assert len(meter.runtime.runs) == 2 * (1 + 3) * 2


def test_a_runtime_that_takes_long_to_make_ready_does_so_once(fake_meter, monkeypatch):
    meter = fake_meter()
    monkeypatch.setattr(type(meter.runtime), "compiles", True)
    assert fake_meter(sessions=3).sessions == 1
