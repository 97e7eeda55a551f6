"""A network as a file that runs without its code: ONNX, or a program of `torch.export`.

Either file takes batches of any size and is written only after what it computes was compared with what PyTorch does.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from backends.extras import import_extra
from backends.onnx_session import OnnxSession
from compsearch.atomic import write_bytes

#: How far an exported network's logits may be from PyTorch's, as a fraction of the largest logit.
TOLERANCE = 1e-4

#: The oldest opset that torch's exporter writes by itself.
OLDEST_OPSET = 18

#: A protobuf, so an ONNX file with its weights inside, ends here.
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Exported:
    """A file that was written, its size, and how closely it computes what the network does.

    `difference` is the largest ``|exported - PyTorch|`` of any logit of `num_images` images, and `scale` the largest
    ``|PyTorch|``; ``difference <= 1e-4 * scale`` holds.
    """

    path: Path
    num_bytes: int
    num_images: int
    difference: float
    scale: float


def export_onnx(network: nn.Module, images: Tensor, path: str | Path, *, opset: int | None = None) -> Exported:
    """Writes `network` to `path` as one ONNX file, weights inside, in float32 and eval mode; `network` is not changed.

    `images` [N, C, H, W] are what the file is checked on, in onnxruntime, all at once and one alone. They set C, H and
    W; the batch dimension stays open. The input is called "images", the output "logits". `opset` is torch's choice
    where it is None.

    Raises ValueError, and leaves `path` as it was, when an operation has no counterpart in ONNX, the file computes
    something else, the network depends on the values or the number of images, or a package is missing.
    """
    onnx = import_extra("onnx", extra="onnx")
    for package in ("onnxscript", "onnxruntime"):
        import_extra(package, extra="onnx")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"`{OLDEST_OPSET} <= opset <= {newest}` must hold for this onnx, but got {opset=}")
    reference = _Reference(network, images)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in reference.network.state_dict().values())
    if num_bytes > _MOST_BYTES:
        raise ValueError(f"an ONNX file must hold less than 2 GiB, but the weights alone are {num_bytes:,} bytes")
    program = _program(reference)
    with _quiet():
        try:
            translated = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["images"],
                output_names=["logits"],
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(_no_counterpart(error, program)) from error
    assert translated is not None
    model = translated.model_proto
    _forget_source(model)
    content: bytes = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    session = OnnxSession(content, threads=torch.get_num_threads(), provider="CPU")
    return _write_checked(content, session, reference, Path(path))


def export_program(network: nn.Module, images: Tensor, path: str | Path) -> Exported:
    """Writes `network` to `path` as a program that ``torch.export.load(path).module()`` runs; as `export_onnx` else."""
    reference = _Reference(network, images)
    program = _program(reference)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
        content = buffer.getvalue()
        loaded = torch.export.load(io.BytesIO(content)).module()
    return _write_checked(content, loaded, reference, Path(path))


class _Reference:
    """What an exported file must compute: the logits of a float32 copy of the network, in eval mode on the CPU.

    `batches` are pairs of images and logits: of all images at once, and of one alone.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        if images.ndim < 2 or not len(images):
            raise ValueError(f"an export must be checked on images [N, C, H, W], but got shape {tuple(images.shape)}")
        self.network = copy.deepcopy(network).to("cpu", torch.float32).eval()
        self.images = images.detach().to("cpu", torch.float32)
        self.batches = [(batch, self._logits(batch)) for batch in (self.images, self.images[:1])]
        self.scale = max(float(logits.abs().max()) for _, logits in self.batches)

    def _logits(self, images: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                logits = self.network(images)
        except RuntimeError as error:
            raise ValueError(
                f"a network must take any number of its images to be exported, but fails on {tuple(images.shape)}: "
                f"{_reason(error)}"
            ) from error
        if not isinstance(logits, Tensor):
            raise ValueError(f"a network must return one tensor to be exported, but got {type(logits).__name__}")
        if not logits.isfinite().all():
            raise ValueError("a network must have finite logits to be compared with, but got NaN or infinite ones")
        return logits


def _program(reference: _Reference) -> ExportedProgram:
    # Zeros, because the example is kept in the program's file; two, because one would be taken for a constant.
    example = torch.zeros(2, *reference.images.shape[1:])
    network = reference.network
    with _quiet():
        try:
            return torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
        except Exception as error:  # the network's own code runs in there, and the tracer's errors share no base class
            raise ValueError(
                f"an exported network must do the same whatever the images and however many, but tracing fails"
                f"{_place(error, network)}: {_reason(error)}"
            ) from error


def _place(error: Exception, network: nn.Module) -> str:
    """The innermost module and line of the network's own code in which `error` was raised; empty when it has none."""
    names = {module: name for name, module in network.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            place = f" in module {names[module]!r} ({type(module).__name__})" if names[module] else ""
        is_own = not frame.f_code.co_filename.startswith((str(Path(torch.__file__).parent), "<"))
        if is_own and frame.f_code.co_filename != __file__:
            place = f"{place.split(' at ')[0]} at {Path(frame.f_code.co_filename).name}:{line}"
    return place


def _no_counterpart(error: Exception, program: ExportedProgram) -> str:
    """One line that names the operation and the module it is called in."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = " ".join(str(cause) for cause in causes)
    operation = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if operation is None:
        return f"the network must be expressible in ONNX, but: {_reason(causes[-1])}; export it with format=program"
    node = re.search(r"translating node %(\w+)", text)
    module = _module_of(node.group(1), program) if node else ""
    return (
        f"every operation must have a counterpart in ONNX, but {operation.group(1)}{module} has none; replace it, or "
        "export with format=program"
    )


def _module_of(node_name: str, program: ExportedProgram) -> str:
    # What failed may have come out of a decomposition, whose nodes keep the module they came from.
    with _quiet():
        nodes = {node.name: node for node in [*program.graph.nodes, *program.run_decompositions().graph.nodes]}
    stack = list(nodes[node_name].meta.get("nn_module_stack", {}).values()) if node_name in nodes else []
    if not stack:
        return ""
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return f", called in module {path!r} ({kind.rsplit('.', 1)[-1]})," if path else f", called in {kind},"


def _write_checked(content: bytes, exported: Callable[[Tensor], Tensor], reference: _Reference, path: Path) -> Exported:
    """Writes `content` to `path` when `exported` computes what the network does. Raises ValueError when it doesn't."""
    differences = []
    for images, expected in reference.batches:
        with torch.no_grad():
            found = exported(images)
        if found.shape != expected.shape:
            shapes = f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
            raise ValueError(f"an exported network must compute what PyTorch does, but returns {shapes}")
        differences.append((found - expected).abs().max())
    difference = float(torch.stack(differences).max())  # NaN stays NaN
    if not difference <= TOLERANCE * reference.scale:
        raise ValueError(
            f"an exported network must compute what PyTorch does to {TOLERANCE:g} of the largest logit, "
            f"{reference.scale:.3g}, but differs by {difference:.3g}; nothing was written"
        )
    write_bytes(path, content)
    return Exported(path, len(content), len(reference.images), difference, reference.scale)


def _forget_source(model: Any) -> None:
    """Removes the names and lines of this machine's source files, which the exporter notes at every node."""
    graph = model.graph
    for part in (graph.node, graph.input, graph.output, graph.initializer, graph.value_info):
        for entry in part:
            del entry.metadata_props[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == batch:
                dim.dim_param = "batch"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's tracer off the terminal: what it logs and prints before it fails is in its exceptions too."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _reason(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
