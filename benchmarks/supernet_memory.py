"""Peak memory of training an over-parameterised network, by the number of candidate operations per block.

    python -m benchmarks.supernet_memory [--device cuda] [--check-resident]

A network of mobile inverted bottlenecks with 2, 4, 8 and 14 candidates in each block takes a weight step on one path
(forward, backward, SGD with momentum), and looks at its gates with the full and with the two-path estimator. The first
candidate is always the dearest, and the path goes along it, so that one operation's activations are as large whatever
the number. Beside them stands what is avoided: the gates' gradients from a graph with every candidate in it.

On the CPU, memory is that of every tensor storage alive, followed through all operations of forward and backward;
scratch memory inside kernels is not seen. With --check-resident the rise of the process's resident size in each step is
measured beside it (Linux), which sees everything. On CUDA it is the allocator's own peak.

Weights are parameters and buffers; the rest of the peak is activations, gradients on their way, and the gradients and
momenta of the path's weights, which a step makes. Printed is the largest rest over the smallest beside each column.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backends.mbconv import build
from backends.mixed_operation import MixedOperation, mixed_operations
from backends.operation_gates import OperationGates
from backends.operation_space import operation_space
from compsearch.space import BoolArray, IntArray

NUM_CANDIDATES = (2, 4, 8, 14)
#: From the dearest to the cheapest: all of kernel 7 down to 3 with expansion 6 first.
CANDIDATES = tuple(f"k{kernel}_e{expansion}" for expansion in (6, 5, 4, 3, 2) for kernel in (7, 5, 3))
STEPS = ("weight step", "gates, two-path", "gates, full")
#: What is avoided: all candidates in one graph, as where every path is computed.
CONTROL = "all paths at once"


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that operations inside have made or met, and that are alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._met: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.meet(result)
        return result

    def meet(self, tensors: Any) -> None:
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self._met:
                    self._met[key] = storage.nbytes()
                    self.now += self._met[key]
                    # The same Python object stands for a storage as long as that lives.
                    weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._met.pop(key)


class Subject:
    """A network with `num_candidates` per block, its gates, a batch, and a momentum for every weight that moved."""

    def __init__(self, num_candidates: int, *, image_size: int, batch_size: int, width: float, device: str) -> None:
        strides = (1, 2, 2, 1, 2, 1) if image_size <= 64 else (2, 2, 2, 1, 2, 1)
        widths = (24, 40, 80, 96, 192, 320)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network: nn.Module = build(
                num_classes=10,
                stem_channels=32,
                stem_stride=1 if image_size <= 64 else 2,
                first_channels=16,
                stages=[{"channels": c, "cells": 2, "stride": s} for c, s in zip(widths, strides, strict=True)],
                head_channels=1280,
                candidates=CANDIDATES[:num_candidates],
                width_multiplier=width,
                alike_noise=None,
            )
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch_size, 3, image_size, image_size, generator=generator).to(device)
        self.labels = torch.randint(10, (batch_size,), generator=generator).to(device)
        self.gates = OperationGates(
            model=self.network, space=operation_space(self.network, torch.zeros(1, 3, image_size, image_size))
        )
        self.network.to(device).train()
        self.path: IntArray = np.zeros(len(self.gates.candidates.values), dtype=np.int64)

    @property
    def weight_bytes(self) -> int:
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def run(self, step: str) -> None:
        if step == "weight step":
            self._weights()
        elif step == CONTROL:
            self._all_at_once()
        elif step == "gates, full":
            self._look(self.gates.candidates.is_one)
        else:
            two: BoolArray = np.zeros_like(self.gates.candidates.is_one)
            two[:, :2] = True
            self._look(two)

    def _weights(self) -> None:
        self.network.zero_grad(set_to_none=True)
        F.cross_entropy(self.gates.logits(self.images, self.path), self.labels).backward()
        parameters = dict(self.network.named_parameters())
        torch.optim.SGD([parameters[name] for name in self.gates.movable(self.path)], lr=0.0, momentum=0.9).step()
        self.network.zero_grad(set_to_none=True)

    def _look(self, wanted: BoolArray) -> None:
        logits, gradients = self.gates.logits_with_gates(self.images, self.path, wanted)
        F.cross_entropy(logits, self.labels).backward()
        found = gradients()
        assert np.isfinite(found).all()

    def _all_at_once(self) -> None:
        gates = torch.eye(1, len(CANDIDATES), device=self.images.device)[0].requires_grad_()

        def mix(mixed: nn.Module, args: Any, result: Tensor) -> Tensor:
            assert isinstance(mixed, MixedOperation)
            others = [gate * candidate(*args) for gate, candidate in zip(gates[1:], mixed.candidates[1:], strict=False)]
            return sum(others, gates[0] * result)

        handles = [mixed.register_forward_hook(mix) for mixed in mixed_operations(self.network).values()]
        parameters = list(self.network.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        F.cross_entropy(self.network(self.images), self.labels).backward()
        for parameter in parameters:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def peak_bytes(run: Callable[[], None], network: nn.Module, images: Tensor) -> int:
    """The most bytes alive while `run` runs, the network's tensors and the images included."""
    run()  # what is made once (a gradient accumulator, a kernel's workspace) is not of the step
    gc.collect()
    if images.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    with LiveMemory() as memory:
        memory.meet([*network.parameters(), *network.buffers(), images])
        run()
    return memory.peak


def table(rows: Sequence[int], options: argparse.Namespace) -> list[dict[str, float]]:
    """MB of the weights and, per step, of the whole peak, for each number of candidates."""
    found = []
    for num_candidates in rows:
        subject = _subject(num_candidates, options)
        weights = subject.weight_bytes
        found.append({"candidates": num_candidates, "weights": weights / 1e6})
        for step in (*STEPS, CONTROL):
            peak = peak_bytes(lambda subject=subject, step=step: subject.run(step), subject.network, subject.images)
            found[-1][step] = peak / 1e6
        del subject
        gc.collect()
    return found


def resident_table(rows: Sequence[int]) -> list[dict[str, float]]:
    """As `table`, by how far each step's resident size rises above what it starts from; a process per number."""
    found = []
    # Large blocks come from the system and go back to it at once, so that what is resident is what is in use.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    for num_candidates in rows:
        command = [sys.executable, "-m", "benchmarks.supernet_memory", *sys.argv[1:], "--resident", str(num_candidates)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **allocator})
        found.append({"candidates": num_candidates, "weights": 0.0, **json.loads(done.stdout)})
    return found


def _rises(num_candidates: int, options: argparse.Namespace) -> dict[str, float]:
    """MB by which the resident size rises in each step, the second time it is taken."""
    subject = _subject(num_candidates, options)
    found = {}
    for step in (*STEPS, CONTROL):
        subject.run(step)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before = _status("VmRSS:")
        subject.run(step)
        found[step] = _status("VmHWM:") - before
    return found


def _status(key: str) -> float:
    """MB. Not getrusage's, which a process takes over from the one that started it."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(key) + 1]) * 1024 / 1e6


def _subject(num_candidates: int, options: argparse.Namespace) -> Subject:
    return Subject(
        num_candidates,
        image_size=options.image_size,
        batch_size=options.batch_size,
        width=options.width,
        device=options.device,
    )


def _print(rows: Sequence[Mapping[str, float]], title: str) -> None:
    print(f"\n{title}\n")
    print("| candidates | weights | " + " | ".join(f"{step} | less the weights" for step in (*STEPS, CONTROL)) + " |")
    print("|---:" * (4 + 2 * len(STEPS)) + "|")
    for row in rows:
        parts = [f"{row[step]:.1f} | {row[step] - row['weights']:.1f}" for step in (*STEPS, CONTROL)]
        print(f"| {row['candidates']:.0f} | {row['weights']:.1f} | " + " | ".join(parts) + " |")
    for step in (*STEPS, CONTROL):
        rest = [row[step] - row["weights"] for row in rows]
        print(f"{step}: the largest rest is {max(rest) / min(rest):.3f} × the smallest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of all widths")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--check-resident", action="store_true", help="the resident size of processes, too")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(json.dumps(_rises(options.resident, options)))
        return
    title = f"MB, batch {options.batch_size} of {options.image_size}×{options.image_size}, width × {options.width:g}"
    _print(table(NUM_CANDIDATES, options), f"{title}, {options.device}, tensors")
    if options.check_resident:
        _print(resident_table(NUM_CANDIDATES), f"{title}, rise of the resident size, weights not included")


if __name__ == "__main__":
    main()
