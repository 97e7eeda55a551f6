"""One ONNX export for all networks cut from one: their graphs are the same but for weights, and sizes that can go.

An export takes seconds and there are dozens of networks to time. The first one is kept as a template; for the others
its weights are exchanged. Sizes of channels that the exporter wrote into the graph are replaced by "as it comes" where
ONNX has a way to say that. Whoever takes a model from here must check what it computes: there may be other such sizes.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.extras import import_extra
from backends.surgery import named_tensors


class OnnxTemplate:
    """The graph of `network` on `images` [B, C, H, W], both on the CPU, without weights of its own.

    Raises ValueError where torch can't export the network.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        onnx = import_extra("onnx", extra="onnx")
        for package in ("onnxscript", "onnxruntime"):
            import_extra(package, extra="onnx")
        with _quiet():
            try:
                program = torch.export.export(network, (images,))
                # Not optimised: that would fold the norms into weights, and weights are to be exchanged by name.
                exported = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False)
            except Exception as error:  # the network's own code runs in there
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(f"a network must export to ONNX to be timed there, but: {line}") from error
        assert exported is not None
        self._onnx = onnx
        self._proto = exported.model_proto
        self._bare()
        self._loosen()

    def model(self, network: nn.Module) -> bytes:
        """The ONNX model of another `network` of the same structure."""
        onnx, proto = self._onnx, type(self._proto)()
        proto.CopyFrom(self._proto)
        weights = dict(named_tensors(network))
        _fit_groups(proto, weights)
        for initializer in proto.graph.initializer:
            if initializer.name in weights:
                array = weights[initializer.name].detach().cpu().numpy()
                initializer.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), initializer.name))
        content: bytes = proto.SerializeToString()
        return content

    def _bare(self) -> None:
        """Takes out the casts and expansions around weights and constants that the exporter's optimiser would.

        With them, ONNX Runtime does not see that norms and clips are of constants, and fuses none of them into the
        convolutions before them: MobileNetV2 then takes six times as long.
        """
        graph = self._proto.graph
        maker = {output: node for node in graph.node for output in node.output}
        weights = {value.name: value for value in graph.initializer}

        def source(name: str, through: tuple[str, ...]) -> str:
            while name in maker and maker[name].op_type in through:
                name = maker[name].input[0]
            return name

        for node in graph.node:
            for index, name in enumerate(node.input):
                # All numbers of a network are float32 here, so that a cast to the type of another is none.
                node.input[index] = source(name, ("CastLike",))
                if node.op_type == "BatchNormalization" and index:
                    weight = source(name, ("CastLike", "Expand"))
                    if weight in weights and len(weights[weight].dims) == 1:
                        node.input[index] = weight
        used = {output.name for output in graph.output}
        for node in reversed(list(graph.node)):
            if used.isdisjoint(node.output):
                graph.node.remove(node)
            else:
                used.update(node.input)

    def _loosen(self) -> None:
        """Leaves channels open in the shapes that operations are given."""
        graph = self._proto.graph
        del graph.value_info[:]  # shapes in between, which are the template's
        values = {value.name: self._onnx.numpy_helper.to_array(value) for value in graph.initializer}
        for node in graph.node:  # in an order in which they can run
            if node.op_type == "Constant":
                [value] = node.attribute
                found = self._onnx.helper.get_attribute_value(value)
                values[node.output[0]] = (
                    self._onnx.numpy_helper.to_array(found) if value.name == "value" else np.array(found)
                )
            elif node.op_type in ("Cast", "Concat") and all(name in values for name in node.input):
                values[node.output[0]] = np.concatenate([values[name] for name in node.input], axis=None)
            elif node.op_type in _LOOSENED and node.input[1] in values:
                dims = values[node.input[1]]
                loosened = _LOOSENED[node.op_type].get(len(dims)) if dims.ndim == 1 else None
                if loosened is not None:
                    name = f"{node.output[0]}_loosened"
                    wanted = np.array([dim if new is None else new for dim, new in zip(dims, loosened, strict=True)])
                    graph.initializer.append(self._onnx.numpy_helper.from_array(wanted.astype(np.int64), name))
                    node.input[1] = name
                    for attribute in [each for each in node.attribute if each.name == "allowzero"]:
                        node.attribute.remove(attribute)


#: By operation and number of dimensions, what a shape gets in place of the template's: 0 is the input's own size at
#: that place, -1 what is left, 1 (of Expand) the input's own; None stays.
_LOOSENED: dict[str, dict[int, tuple[int | None, ...]]] = {
    "Reshape": {2: (0, -1), 4: (0, -1, None, None), 5: (0, None, -1, None, None)},
    "Expand": {4: (None, 1, None, None)},
}


def _fit_groups(proto: Any, weights: dict[str, Tensor]) -> None:
    """Gives grouped convolutions as many groups as their new weights are for: groups keep their width."""
    for node in proto.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            [group] = [attribute for attribute in node.attribute if attribute.name == "group"] or [None]
            if group is not None and group.i > 1:
                [old] = [value.dims[0] for value in proto.graph.initializer if value.name == node.input[1]]
                group.i = len(weights[node.input[1]]) * group.i // old


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints and logs on the way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
