"""What runs a network when its time is taken: PyTorch as it is, compiled, by CUDA graphs, or onnxruntime.

A runtime makes a network ready once and hands back a function that runs it once, to the end.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backends.extras import import_extra
from backends.layer_shapes import LayerShape, layer_module
from backends.onnx_layer import layer_model
from backends.onnx_session import OnnxSession
from backends.onnx_template import OnnxTemplate

#: Runs a network once and waits until it is done.
Run = Callable[[], object]


class Runtime(Protocol):
    """`name` is what it is chosen by; `versions` are those of the packages that decide how fast it is.

    `compiles` says that making a network ready takes long.
    """

    name: str
    compiles: bool

    def device(self, wanted: torch.device) -> torch.device:
        """Where networks run, given the device of the whole job. Raises ValueError where this runtime can't."""
        ...

    def versions(self) -> dict[str, str]: ...

    def prepare(self, network: nn.Module, images: Tensor, *, threads: int) -> Run:
        """`network`, in eval mode and not changed, made ready to run on `images` [B, C, H, W]."""
        ...

    def prepare_layer(self, shape: LayerShape, ins: int, outs: int, images: Tensor, *, threads: int) -> Run:
        """A layer of `shape`, of `ins` inputs and `outs` outputs, alone, made ready to run on its input `images`."""
        ...


class TorchRuntime:
    """PyTorch, one operation after the other; `channels_last` holds images and filters in that order."""

    compiles = False

    def __init__(self, *, channels_last: bool) -> None:
        self.channels_last = channels_last
        self.name = "torch channels_last" if channels_last else "torch"

    def device(self, wanted: torch.device) -> torch.device:
        return wanted

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def prepare(self, network: nn.Module, images: Tensor, *, threads: int) -> Run:
        module, images = copy.deepcopy(network).to(images.device), images.clone()
        if self.channels_last and images.dim() == 4:
            module = module.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        return _synchronised(lambda: module(images), images.device)

    def prepare_layer(self, shape: LayerShape, ins: int, outs: int, images: Tensor, *, threads: int) -> Run:
        return self.prepare(layer_module(shape, ins, outs), images, threads=threads)


class TorchCompileRuntime:
    """torch.compile with the weights taken as constants. Compiles for seconds to minutes per network."""

    name = "torch_compile"
    compiles = True

    def device(self, wanted: torch.device) -> torch.device:
        if wanted.type == "cpu" and not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            raise ValueError(
                "runtime=torch_compile needs a C++ compiler on the CPU, but found none of g++, clang++, c++; install "
                "one, or take another runtime"
            )
        return wanted

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def prepare(self, network: nn.Module, images: Tensor, *, threads: int) -> Run:
        images = images.clone()
        # An exported network has code of its own. As modules of one class, networks would share one cache of compiled
        # code, and the ninth would run eagerly, silently.
        module = torch.export.export(copy.deepcopy(network).to(images.device), (images,)).module()
        compiled = torch.compile(module, dynamic=False, options={"freezing": True})
        with torch.inference_mode():
            compiled(images)
        return _synchronised(lambda: compiled(images), images.device)

    def prepare_layer(self, shape: LayerShape, ins: int, outs: int, images: Tensor, *, threads: int) -> Run:
        return self.prepare(layer_module(shape, ins, outs), images, threads=threads)


class CudaGraphsRuntime:
    """PyTorch on a GPU, its launches recorded once and replayed, so that they don't hide what the kernels take."""

    name = "cuda_graphs"
    compiles = False

    def device(self, wanted: torch.device) -> torch.device:
        if wanted.type != "cuda":
            raise ValueError(f"runtime=cuda_graphs needs a CUDA device, but the device is {wanted}; take runtime=torch")
        return wanted

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "cuda": str(torch.version.cuda)}

    def prepare(self, network: nn.Module, images: Tensor, *, threads: int) -> Run:
        module, images = copy.deepcopy(network).to(images.device), images.clone()
        side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):  # lazy initialisation must not be recorded
                module(images)
        torch.cuda.current_stream(images.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            module(images)

        def replay(module: nn.Module = module) -> None:  # holds the module: the graph reads its weights
            graph.replay()

        return _synchronised(replay, images.device)

    def prepare_layer(self, shape: LayerShape, ins: int, outs: int, images: Tensor, *, threads: int) -> Run:
        return self.prepare(layer_module(shape, ins, outs), images, threads=threads)


class OnnxRuntime:
    """onnxruntime, from an ONNX export of the network: on the CPU, or on the GPU where its CUDA provider is there."""

    name = "onnxruntime"
    compiles = False

    def __init__(self) -> None:
        self._templates: dict[tuple[Any, ...], OnnxTemplate] = {}

    def device(self, wanted: torch.device) -> torch.device:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            import_extra(package, extra="onnx")
        return wanted

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": metadata.version("onnxruntime")}

    def prepare(self, network: nn.Module, images: Tensor, *, threads: int) -> Run:
        network, batch = copy.deepcopy(network).cpu(), images.cpu()
        structure = (tuple((name, type(module)) for name, module in network.named_modules()), tuple(batch.shape))
        template = self._templates.get(structure)
        model = None if template is None else _checked_model(template, network, batch)
        if model is None:
            # The first of its kind, or one whose sizes are in the template's graph.
            self._templates[structure] = OnnxTemplate(network, batch)
            model = _checked_model(self._templates[structure], network, batch)
        if model is None:
            raise ValueError("onnxruntime must compute what the network does to time it there, but its export doesn't")
        return self._ready(model, images, threads)

    def prepare_layer(self, shape: LayerShape, ins: int, outs: int, images: Tensor, *, threads: int) -> Run:
        is_linear = shape.kind == "linear"
        one = ((1, 1), (1, 1), (0, 0), (1, 1))
        kernel, stride, padding, dilation = one if is_linear else map(_pair, shape.geometry)
        model = layer_model(
            kind="linear" if is_linear else "conv",
            in_channels=ins,
            out_channels=outs,
            height=shape.height,
            width=shape.width,
            batch=len(images),
            groups=shape.num_groups(outs),
            bias=shape.bias or bool(shape.norm),  # a norm is folded into the layer
            activation=shape.activation or None,
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        return self._ready(model, images, threads)

    def _ready(self, model: bytes, images: Tensor, threads: int) -> Run:
        session = OnnxSession(model, threads=threads, provider="CUDA" if images.is_cuda else "CPU")
        session.bind(images)
        return session.run


def _checked_model(template: OnnxTemplate, network: nn.Module, images: Tensor) -> bytes | None:
    """The ONNX model of `network`, None where onnxruntime does not compute what the network does."""
    model = template.model(network)
    try:
        logits = OnnxSession(model, threads=1, provider="CPU")(images)
    except Exception:  # onnxruntime's exceptions share no base class
        return None
    expected = network(images)
    return model if bool((logits - expected).abs().max() <= 1e-3 * expected.abs().max()) else None


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    if len(values) != 2:
        raise ValueError(f"runtime=onnxruntime times layers of two dimensions, but got one with {len(values)}")
    return values[0], values[1]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """What one operation of PyTorch may use on the CPU; the setting before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _synchronised(run: Run, device: torch.device) -> Run:
    if device.type != "cuda":
        return run

    def wait() -> None:
        run()
        # CUDA runs behind the caller: without waiting only the launch would be timed.
        torch.cuda.synchronize(device)

    return wait
