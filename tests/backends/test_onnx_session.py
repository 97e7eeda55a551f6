"""ONNX Runtime behind one call, and behind runs on bound inputs."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backends import onnx_session
from backends.onnx_layer import layer_model
from backends.onnx_session import OnnxSession


def model(batch: int = 2) -> bytes:
    return layer_model(kind="conv", in_channels=3, out_channels=4, height=6, width=6, batch=batch, kernel=(3, 3))


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threads", [1, 2])
def test_bound_runs_compute_what_a_call_computes(threads: int) -> None:
    session = OnnxSession(model(), threads=threads, provider="CPU")
    session.bind(images())
    first = session.bound_output()
    session.run()
    assert first.shape == (2, 4, 4, 4)
    assert torch.equal(session.bound_output(), session(images()))
    session.bind(images(seed=1))
    session.run()
    assert not torch.equal(session.bound_output(), first)
    assert torch.equal(session.bound_output(), session(images(seed=1)))


def test_bound_inputs_live_as_long_as_they_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    references = []
    to_array = onnx_session._array

    def remember(tensor: Tensor) -> object:
        array = to_array(tensor)
        references.append(weakref.ref(array))
        return array

    monkeypatch.setattr(onnx_session, "_array", remember)
    session = OnnxSession(model(), threads=1, provider="CPU")
    session.bind(images().to(torch.float64))  # converted, so that nobody else holds the memory
    gc.collect()
    assert references[0]() is not None, "the runtime would read freed memory"
    session.bind(images().to(torch.float64))
    assert references[0]() is None


def test_any_memory_format_and_gradient_is_taken() -> None:
    session = OnnxSession(model(), threads=1, provider="CPU")
    odd = images().to(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(session(odd), session(images()))


def test_a_file_and_its_bytes_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "layer.onnx"
    path.write_bytes(model())
    from_bytes, from_file = (OnnxSession(source, threads=1, provider="CPU") for source in (model(), path))
    assert torch.equal(from_bytes(images()), from_file(images()))


@pytest.mark.parametrize(
    ("source", "threads", "provider", "words"),
    [
        (model(), 0, "CPU", "`threads >= 1` must hold .*threads=0"),
        (model(), 1, "TPU", "must be one of CPU, CUDA, but got 'TPU'"),
        (b"no model", 1, "CPU", "8 bytes must be a model that ONNX Runtime takes"),
        ("nowhere.onnx", 1, "CPU", r"nowhere.onnx must be a model .*doesn't exist"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(source: bytes | str, threads: int, provider: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        OnnxSession(source, threads=threads, provider=provider)
    assert "\n" not in str(caught.value)


def test_a_gpu_that_this_runtime_lacks_is_refused_with_the_way_out() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ValueError, match=r"must have CUDAExecutionProvider .* pip install onnxruntime-gpu"):
        OnnxSession(model(), threads=1, provider="CUDA")


def test_the_wrong_number_of_inputs_is_refused() -> None:
    session = OnnxSession(model(), threads=1, provider="CPU")
    with pytest.raises(ValueError, match="must be given its 1 inputs, but got 2"):
        session(images(), images())


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime must be installed .*pip install 'compsearch\[onnx\]'") as caught:
        OnnxSession(b"", threads=1, provider="CPU")
    assert "\n" not in str(caught.value)
