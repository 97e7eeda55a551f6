"""Exported files compute what the network does, and nothing else is ever written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from backends import export
from backends.cifar_resnet import PadShortcut
from backends.export import Exported, export_onnx, export_program
from backends.groups import trace
from backends.onnx_session import OnnxSession
from backends.surgery import extract
from backends.zoo import cifar_resnet, torchvision_model

Export = Callable[..., Exported]
BOTH = pytest.mark.parametrize("write", [export_onnx, export_program])


def images(num_images: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Around(nn.Module):
    """A convolution, and what is done to its output."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.conv(x)).mean((2, 3))


@torch.library.custom_op("compsearch_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return twice(x)


class Singular(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x, full_matrices=False)[0]


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4, x.shape[2], x.shape[3])


class OtherwiseWhenExported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 if torch.compiler.is_exporting() else x


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Padded(nn.Module):
    """Option-A shortcuts with something and with nothing before the channels they keep."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = PadShortcut(3, 7), PadShortcut(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x)).flatten(1)


def test_an_extracted_network_runs_in_onnxruntime_at_any_batch_size(tiny: SimpleNamespace, tmp_path: Path) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    done = export_onnx(network, images(6), tmp_path / "tiny.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"], "weights belong inside the one file"
    assert done.num_bytes == done.path.stat().st_size > sum(4 * tensor.numel() for tensor in network.parameters())
    assert done.num_images == 6
    assert done.difference <= 1e-4 * done.scale
    session = OnnxSession(done.path, threads=1, provider="CPU")
    for num_images in (1, 2, 7):
        fresh = images(num_images, seed=num_images)
        torch.testing.assert_close(session(fresh), network(fresh).detach(), rtol=0, atol=1e-4 * done.scale)


def test_an_extracted_network_runs_as_a_program_at_any_batch_size(tiny: SimpleNamespace, tmp_path: Path) -> None:
    network = extract(tiny.model, tiny.space, tiny.half)
    done = export_program(network, images(6), tmp_path / "tiny.pt2")
    program = torch.export.load(done.path).module()
    for num_images in (1, 2, 7):
        fresh = images(num_images, seed=num_images)
        torch.testing.assert_close(program(fresh), network(fresh), rtol=0, atol=1e-4 * done.scale)


def test_the_reported_difference_is_the_largest_of_any_logit(tiny: SimpleNamespace, tmp_path: Path) -> None:
    done = export_onnx(tiny.model, images(5), tmp_path / "tiny.onnx")
    expected = tiny.model(images(5)).detach()
    session = OnnxSession(done.path, threads=torch.get_num_threads(), provider="CPU")
    together = (session(images(5)) - expected).abs().max()
    alone = (session(images(5)[:1]) - tiny.model(images(5)[:1]).detach()).abs().max()
    assert done.difference == max(float(together), float(alone))
    assert done.scale == float(expected.abs().max())


def test_an_onnx_file_names_its_ends_and_no_file_of_this_machine(tiny: SimpleNamespace, tmp_path: Path) -> None:
    export_onnx(tiny.model, images(2), tmp_path / "tiny.onnx")
    model = onnx.load(tmp_path / "tiny.onnx")
    ends = {value.name: value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)}
    assert [dim.dim_param or dim.dim_value for dim in ends["images"]] == ["batch", 3, 8, 8]
    assert [dim.dim_param or dim.dim_value for dim in ends["logits"]] == ["batch", 5]
    assert b".py" not in (tmp_path / "tiny.onnx").read_bytes()


def test_the_opset_is_the_one_asked_for(tiny: SimpleNamespace, tmp_path: Path) -> None:
    for opset in (18, 21):
        export_onnx(tiny.model, images(2), tmp_path / "tiny.onnx", opset=opset)
        assert [entry.version for entry in onnx.load(tmp_path / "tiny.onnx").opset_import] == [opset]


@BOTH
def test_the_network_the_generators_and_the_terminal_are_left_alone(
    write: Export, tiny: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = tiny.model.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    done = write(network, images(2), tmp_path / "file")
    assert done.scale == float(tiny.model.eval()(images(2)).detach().abs().max()), "exported in eval mode"
    network.train()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert capfd.readouterr() == ("", "")


@BOTH
def test_shortcuts_that_pad_channels_are_exported(write: Export, tmp_path: Path) -> None:
    done = write(Padded(), images(3), tmp_path / "file")
    assert done.difference == 0


@BOTH
def test_a_network_of_lower_precision_is_exported_in_float32(
    write: Export, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    done = write(tiny.model.to(torch.bfloat16), images(2).to(torch.bfloat16), tmp_path / "file")
    assert next(tiny.model.parameters()).dtype == torch.bfloat16
    assert done.difference <= 1e-5 * done.scale


@BOTH
def test_a_file_that_computes_something_else_is_not_written(write: Export, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"to 0.0001 of the largest logit, .* but differs by 0.01; nothing"):
        write(Around(OtherwiseWhenExported()), images(2), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Twice(), r"but compsearch_tests.twice, called in module 'change' \(Twice\), has none"),
        (nn.Sequential(Singular()), r"but aten._linalg_svd, called in module 'change.0' \(Singular\), has none"),
    ],
)
def test_an_operation_that_onnx_lacks_is_named_with_its_module(change: nn.Module, words: str, tmp_path: Path) -> None:
    network = Around(change)
    with pytest.raises(ValueError, match=words) as caught:
        export_onnx(network, images(2), tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert "format=program" in str(caught.value)
    assert not list(tmp_path.iterdir())
    export_program(network, images(2), tmp_path / "file")


@BOTH
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (DependsOnValues(), r"in module 'change' \(DependsOnValues\) at test_export.py:\d+: Could not guard on data"),
        (FixedBatch(), r"must take any number of its images .* fails on \(1, 3, 8, 8\): shape '\[2, 4"),
    ],
)
def test_a_network_that_depends_on_its_images_is_refused_where_it_does(
    write: Export, change: nn.Module, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Around(change)
    with pytest.raises(ValueError, match=words) as caught:
        write(network, images(2), tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@BOTH
@pytest.mark.parametrize(
    ("network", "num_images", "words"),
    [
        (nn.Flatten(), 0, r"must be checked on images \[N, C, H, W\], but got shape \(0, 3, 8, 8\)"),
        (Pair(), 2, "must return one tensor to be exported, but got tuple"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(100.0, float("nan"))), 2, "must have finite logits"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    write: Export, network: nn.Module, num_images: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        write(network, images(num_images), tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"^{package} must be .*pip install 'compsearch\[onnx\]'$"):
        export_onnx(nn.Flatten(), images(2), tmp_path / "file")


@pytest.mark.parametrize("opset", [17, 1000])
def test_an_opset_that_nothing_writes_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"`18 <= opset <= \d+` must hold for this onnx, but got opset={opset}"):
        export_onnx(nn.Flatten(), images(2), tmp_path / "file", opset=opset)


def test_a_network_too_large_for_one_onnx_file_is_refused(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"less than 2 GiB, but the weights alone are 1\d,\d{3} bytes"):
        export_onnx(tiny.model, images(2), tmp_path / "file")


def _half(counts: tuple[int, ...]) -> int:
    return min(counts, key=lambda count: abs(count - counts[-1] / 2))


SIZES = {
    "resnet20": 32,
    "mobilenet_v2": 64,
    "resnet18": 64,
    "densenet121": 64,
    "shufflenet_v2_x0_5": 64,
    "efficientnet_b0": 64,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "resnet20" else []) for name in SIZES]
)
def test_half_of_any_network_is_exported_exactly(name: str, tmp_path: Path) -> None:
    """``pytest -m slow tests/backends/test_export.py -s`` prints seconds, bytes and differences."""
    size = SIZES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = {"resnet20": lambda: cifar_resnet(depth=20, num_classes=10)}
        model = kinds.get(name, lambda: torchvision_model(name=name, num_classes=10))()
        with torch.no_grad():
            model(torch.randn(16, 3, size, size))  # running statistics that are not the initial ones
    model.eval()
    space = trace(model, torch.zeros(2, 3, size, size), divisor=1, min_keep_ratio=0.1)
    chance = np.random.default_rng(0)
    counts = [_half(group.counts) for group in space.groups]
    network = extract(model, space, space.select(counts, chance.random(space.num_units)))
    for write, ending in ((export_onnx, "onnx"), (export_program, "pt2")):
        start = time.perf_counter()
        done = write(network, images(8, size), tmp_path / f"{name}.{ending}")
        seconds = time.perf_counter() - start
        assert done.difference <= 1e-5 * done.scale
        print(f"{name}.{ending}: {done.difference:.1e} of {done.scale:.3g}, {seconds:.1f} s, {done.num_bytes:,} bytes")
