import pytest
import torch
from torch import Tensor, nn

from backends import latency
from backends.latency import measure_latency

IMAGE = torch.zeros(1, 3, 4, 4)


class Clock:
    """Stands still but for what networks spend."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Spender(nn.Module):
    def __init__(self, name, clock, calls, seconds):
        super().__init__()
        self.name, self.clock, self.calls, self.seconds = name, clock, calls, seconds

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append((self.name, torch.get_num_threads()))
        self.clock.now += self.seconds(len(self.calls))
        return x


def run(monkeypatch, seconds, **changes):
    clock, calls = Clock(), []
    monkeypatch.setattr(latency, "time", clock)
    networks = {name: Spender(name, clock, calls, function) for name, function in seconds.items()}
    options = {"repetitions": 11, "warmup": 2, "time_budget_s": 1e9, "threads": 1}
    return measure_latency(networks, IMAGE, **{**options, **changes}), calls, networks


def test_networks_take_turns_and_the_warm_up_is_not_counted(monkeypatch):
    result, calls, _ = run(monkeypatch, {"a": lambda n: 5.0 if n <= 4 else 0.002, "b": lambda n: 0.004})
    assert [name for name, _ in calls] == ["a", "b"] * 13
    assert result["a"].median_ms == pytest.approx(2)
    assert (result["a"].p90_ms, result["b"].median_ms) == (pytest.approx(2), pytest.approx(4))
    assert result["a"].repetitions == result["b"].repetitions == 11


def test_percentiles_are_those_of_the_counted_rounds(monkeypatch):
    result, _, _ = run(monkeypatch, {"a": lambda n: n * 1e-3}, warmup=0)
    assert (result["a"].p10_ms, result["a"].median_ms, result["a"].p90_ms) == pytest.approx((2, 6, 10))


def test_the_time_budget_ends_the_rounds_but_not_before_the_third(monkeypatch):
    assert run(monkeypatch, {"a": lambda n: 1.0}, time_budget_s=4.5)[0]["a"].repetitions == 5
    assert run(monkeypatch, {"a": lambda n: 1.0}, time_budget_s=0.0)[0]["a"].repetitions == 3


def test_threads_and_modes_come_back(monkeypatch):
    before = torch.get_num_threads()
    _, calls, networks = run(monkeypatch, {"a": lambda n: 1.0}, threads=before + 1)
    assert {threads for _, threads in calls} == {before + 1}
    assert torch.get_num_threads() == before
    assert networks["a"].training


@pytest.mark.parametrize("change", [{"repetitions": 0}, {"warmup": -1}, {"threads": 0}])
def test_impossible_settings_are_refused(change):
    options = {"repetitions": 1, "warmup": 0, "time_budget_s": 1.0, "threads": 1}
    with pytest.raises(ValueError, match=r"repetitions >= 1"):
        measure_latency({"a": nn.Identity()}, IMAGE, **{**options, **change})


def test_a_real_network_takes_time():
    result = measure_latency({"a": nn.Conv2d(3, 8, 3)}, IMAGE, repetitions=3, warmup=1, time_budget_s=10, threads=1)
    assert 0 < result["a"].p10_ms <= result["a"].median_ms <= result["a"].p90_ms
