"""A network in ONNX Runtime: logits of images, and runs on inputs that are bound once, for timing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.extras import import_extra

#: What a user says, what ONNX Runtime calls it, and where its tensors are.
PROVIDERS = {"CPU": ("CPUExecutionProvider", "cpu"), "CUDA": ("CUDAExecutionProvider", "cuda")}


class OnnxSession:
    """An ONNX model, by its bytes or its path, ready to run on `threads` threads of the CPU, or on the GPU.

    Operators run one after another, each on up to `threads` threads that *sleep* between tasks. ONNX Runtime's own
    default lets them spin instead, which on an otherwise idle machine saves the wake-ups; but a spinning pool keeps its
    cores for milliseconds after its run, so it slows whatever is timed in turns with it, and every session has a pool
    of its own. With one thread there is no pool and nothing to choose. Graphs are optimised fully, as by default.

    Raises ValueError when onnxruntime is not installed, `threads < 1`, the provider is unknown or not on this machine,
    or ONNX Runtime refuses the model.
    """

    def __init__(self, model: bytes | str | Path, *, threads: int, provider: str) -> None:
        ort = import_extra("onnxruntime", extra="onnx")
        if threads < 1:
            raise ValueError(f"`threads >= 1` must hold for an ONNX session, but got {threads=}")
        name, self._device = _provider(ort, provider)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Fatal ones only: it warns about every initializer that folding made redundant, and errors are raised too.
        options.log_severity_level = 4
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = ort.InferenceSession(source, options, providers=[name])
        except Exception as error:  # its exceptions share no base class, and a missing file is one of them
            what = f"{len(model)} bytes" if isinstance(model, bytes) else str(model)
            raise ValueError(f"{what} must be a model that ONNX Runtime takes, but: {_first_line(error)}") from error
        if self._session.get_providers()[0] != name:  # it falls back to the CPU silently, as when CUDA's libraries miss
            raise ValueError(f"{name} must start, but ONNX Runtime fell back to {self._session.get_providers()[0]}")
        self._ort = ort
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._output: str = self._session.get_outputs()[0].name
        self._bound: Any = None
        self._held: list[Any] = []
        self._run: Callable[[Any], None] = self._session.run_with_iobinding

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The first output of the model for `inputs`, float32 in the graph's order, as a tensor on the CPU."""
        self._check_count(inputs)
        arrays = [_array(tensor) for tensor in inputs]
        output = self._session.run([self._output], dict(zip(self._inputs, arrays, strict=True)))[0]
        return torch.from_numpy(output)

    def bind(self, *inputs: Tensor) -> None:
        """Puts `inputs` where `run` reads them, and makes room for the output. Runs the model once."""
        self._check_count(inputs)
        binding = self._session.io_binding()
        values = [self._ort.OrtValue.ortvalue_from_numpy(_array(tensor), self._device, 0) for tensor in inputs]
        for name, value in zip(self._inputs, values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(self._output, self._device, 0)
        self._run(binding)
        # The output's shape is known now: from here on each run writes into the same memory.
        binding.bind_ortvalue_output(self._output, binding.get_outputs()[0])
        self._bound = binding
        self._held = values  # on the CPU the binding points into their memory without owning it

    def run(self) -> None:
        """One run on what `bind` was given, finished on return; nothing is copied or allocated for the caller."""
        assert self._bound is not None, "bind() comes before run()"
        self._run(self._bound)

    def bound_output(self) -> Tensor:
        """A copy of what the last `run` computed, on the CPU."""
        assert self._bound is not None, "bind() comes before bound_output()"
        return torch.from_numpy(self._bound.copy_outputs_to_cpu()[0]).clone()

    def _check_count(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise ValueError(f"the model must be given its {len(self._inputs)} inputs, but got {len(inputs)}")


def _provider(ort: Any, provider: str) -> tuple[str, str]:
    if provider not in PROVIDERS:
        raise ValueError(f"the ONNX provider must be one of {', '.join(PROVIDERS)}, but got {provider!r}")
    name, device = PROVIDERS[provider]
    present = ort.get_available_providers()
    if name not in present:
        raise ValueError(
            f"this onnxruntime ({ort.__version__}) must have {name} for provider={provider!r}, but has "
            f"{', '.join(present)}; pip install onnxruntime-gpu in place of onnxruntime, or take provider='CPU'"
        )
    return name, device


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
