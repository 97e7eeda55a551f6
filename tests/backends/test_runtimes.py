"""Every runtime runs the network it is given, to the end, and says what is missing where it can't."""

import shutil
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from backends import runtimes
from backends.layer_shapes import LayerShape, layer_input
from backends.onnx_template import OnnxTemplate
from backends.runtimes import CudaGraphsRuntime, OnnxRuntime, TorchCompileRuntime, TorchRuntime
from backends.surgery import extract

CPU = torch.device("cpu")
IMAGES = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONV = LayerShape("conv", (3, 3), (1, 1), (1, 1), (1, 1), 8, 8, 0, 0, False, "batch_norm", "hardtanh")
DEPTHWISE = LayerShape("depthwise", (3, 3), (2, 2), (1, 1), (1, 1), 8, 8, 1, 1, True, "", "")
LINEAR = LayerShape("linear", (), (), (), (), 1, 1, 0, 0, True, "", "sigmoid")


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.stride()))
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize("channels_last", [False, True])
def test_torch_runs_a_copy_in_its_memory_order(channels_last):
    network = Counter().eval()
    seen = network.seen
    run = TorchRuntime(channels_last=channels_last).prepare(network, IMAGES, threads=1)
    with torch.inference_mode():
        run()
    assert seen == []  # a copy ran
    assert network.conv.weight.is_contiguous()


@pytest.mark.parametrize("runtime", [TorchRuntime(channels_last=False), OnnxRuntime()], ids=lambda each: each.name)
@pytest.mark.parametrize(("shape", "ins", "outs"), [(CONV, 5, 7), (DEPTHWISE, 6, 6), (LINEAR, 4, 9)])
def test_a_layer_alone_runs(runtime, shape, ins, outs):
    with torch.inference_mode():
        runtime.prepare_layer(shape, ins, outs, layer_input(shape, ins, batch_size=2), threads=1)()


def test_onnxruntime_exports_one_network_and_exchanges_weights_for_the_rest(tiny, monkeypatch):
    made = []

    class Counted(OnnxTemplate):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(runtimes, "OnnxTemplate", Counted)
    runtime = OnnxRuntime()
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(3):
            counts = [rng.choice(group.counts) for group in tiny.space.groups]
            network = extract(tiny.model, tiny.space, tiny.space.select(counts, tiny.importance))
            runtime.prepare(network, IMAGES, threads=1)()
    assert len(made) == 1


def test_a_template_computes_what_each_network_does(tiny):
    template = OnnxTemplate(tiny.model, IMAGES)
    network = extract(tiny.model, tiny.space, tiny.half)
    with torch.no_grad():
        session = runtimes.OnnxSession(template.model(network), threads=1, provider="CPU")
        torch.testing.assert_close(session(IMAGES), network(IMAGES), atol=1e-5, rtol=1e-5)


def test_onnxruntime_fuses_norms_and_activations_into_the_convolutions_of_a_template(tiny, tmp_path):
    import onnx
    import onnxruntime

    for name, network, size in (
        ("tiny", tiny.model, 8),
        ("mobilenet", torchvision.models.mobilenet_v2(width_mult=0.25).eval(), 32),
    ):
        model = OnnxTemplate(network, torch.zeros(1, 3, size, size)).model(network)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kinds = {node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node}
        assert not kinds & {"BatchNormalization", "Clip", "Cast", "Expand"}


def test_a_network_whose_sizes_are_in_the_graph_is_exported_anew():
    class Sized(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, width, 1), nn.Linear(width, 2)

        def forward(self, x):
            x = self.conv(x)
            return self.linear((x / x.shape[1]).mean((2, 3)))  # the width is a number in the graph

    runtime = OnnxRuntime()
    with torch.inference_mode():
        for width in (4, 8):
            runtime.prepare(Sized(width).eval(), IMAGES, threads=1)()
    [template] = runtime._templates.values()
    assert any(list(value.dims) == [8, 3, 1, 1] for value in template._proto.graph.initializer)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own internals
def test_compiled_networks_run(tiny):
    runtime = TorchCompileRuntime()
    with torch.inference_mode():
        for policy in (tiny.space.full_policy(), tiny.half):
            run = runtime.prepare(extract(tiny.model, tiny.space, policy), IMAGES, threads=1)
            run()


def test_without_a_compiler_torch_compile_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"runtime=torch_compile needs a C\+\+ compiler on the CPU"):
        TorchCompileRuntime().device(CPU)


def test_cuda_graphs_are_refused_on_the_cpu():
    with pytest.raises(ValueError, match=r"needs a CUDA device, but the device is cpu; take runtime=torch"):
        CudaGraphsRuntime().device(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graphs_replay(tiny):
    device = torch.device("cuda")
    runtime = CudaGraphsRuntime()
    with torch.inference_mode():
        runtime.prepare(tiny.model, IMAGES.to(runtime.device(device)), threads=1)()


def test_a_missing_package_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime must be installed.*pip install 'compsearch\[onnx\]'"):
        OnnxRuntime().device(CPU)
