"""A network made ready for inference only: norms folded into convolutions, one kernel per step.

On the CPU a step (convolution, folded norm, addition, activation) is one kernel (`backends.fused_convolution`). Where
there is none, and on CUDA, the same steps run as ordinary operations on channels-last tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from backends.fused_convolution import FusedConvolution, has_fused_kernels
from backends.fusion import AnyLayer, CallStep, LayerStep, Plan, Slot, fill, layer_at, norm_at, slots_read

#: Computes one step's result from the values of all slots.
Step = Callable[[list[Any]], Any]


def folded(layer: AnyLayer, norm: _BatchNorm | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, float32 or wider, of one layer that computes ``norm(layer(x))`` with running statistics."""
    weight, bias = _wide(layer.weight), None if layer.bias is None else _wide(layer.bias)
    if norm is None:
        return weight, bias
    scale, shift = norm_affine(norm)
    bias = shift if bias is None else bias * scale + shift
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias


def norm_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift [C], float32 or wider, that a batch norm in eval mode applies."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(_wide(norm.running_var) + norm.eps)
    if norm.weight is not None:
        scale = scale * _wide(norm.weight)
    shift = -_wide(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + _wide(norm.bias)


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class FusedNetwork:
    """Runs `plan` with the weights that `network` has now, in `dtype`, on the device `network` is on.

    `network` is not changed, but may be used from here on: it must not change either. Called with images [B, C, H, W]
    in float32, channels last; returns the network's result. Safe to call from several threads.

    Layers that read the images compute in float32 whatever `dtype` is: they cost little, and rounding the images, which
    are finer than bfloat16, was seen to be the largest single source of changed predictions.
    """

    def __init__(self, network: nn.Module, plan: Plan, *, dtype: torch.dtype) -> None:
        readers = [step for step in plan.steps if 0 in slots_read(step)]
        takes_float32 = all(isinstance(step, LayerStep) and step.other is None for step in readers)
        self._input_dtype = torch.float32 if takes_float32 else dtype
        self._num_slots, self._result = plan.num_slots, plan.result
        runs: list[Step] = []
        for step in plan.steps:
            if isinstance(step, CallStep):
                runs.append(call_runner(network, step, dtype=dtype))
            elif takes_float32 and step.input == 0:
                runs.append(_converted(layer_runner(network, step, dtype=torch.float32), dtype))
            else:
                runs.append(layer_runner(network, step, dtype=dtype))
        outputs = [step.output for step in plan.steps]
        self._steps = list(zip(runs, outputs, plan.last_read, strict=True))

    def __call__(self, images: Tensor) -> Any:
        values: list[Any] = [None] * self._num_slots
        values[0] = images.to(self._input_dtype)
        for run, output, unread in self._steps:
            values[output] = run(values)
            for slot in unread:
                values[slot] = None
        return values[self._result]


def _converted(run: Step, dtype: torch.dtype) -> Step:
    return lambda values: run(values).to(dtype)


def layer_runner(network: nn.Module, step: LayerStep, *, dtype: torch.dtype) -> Step:
    """Computes `step` from the list of slot values, with the weights that its layer and norm have now."""
    layer = layer_at(network, step.layer)
    weight, bias = folded(layer, norm_at(network, step.norm))
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    is_plain = type(layer) is not nn.Conv2d or isinstance(layer.padding, str) or layer.padding_mode != "zeros"
    if is_plain or not has_fused_kernels(weight):
        return _plain_layer(step, layer, weight, bias)
    assert isinstance(layer, nn.Conv2d)
    convolution = FusedConvolution(layer, weight, bias, step.activation)
    source, other = step.input, step.other
    if other is None:
        return lambda values: convolution(values[source])
    return lambda values: convolution(values[source], values[other])


def call_runner(network: nn.Module, step: CallStep, *, dtype: torch.dtype) -> Step:
    """Computes `step` from the list of slot values, with the module or tensor it uses, or a copy of it in `dtype`."""
    if step.kind == "get_attr":
        constant = _attribute(network, step.target, dtype)
        return lambda values: constant
    function: Callable[..., Any]
    if step.kind == "call_method":
        function = _method(step.target)
    elif step.kind == "call_module":
        function = _module(network, step.target, dtype)
    else:
        assert step.kind == "call_function", step.kind
        function = step.target
    if not step.kwargs and all(isinstance(argument, Slot) for argument in step.args):
        indices = [argument.index for argument in step.args]
        return lambda values: function(*[values[index] for index in indices])

    def run(values: list[Any]) -> Any:
        args, kwargs = fill(step, lambda slot: values[slot.index])
        return function(*args, **kwargs)

    return run


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)


def _module(network: nn.Module, path: str, dtype: torch.dtype) -> nn.Module:
    module = network.get_submodule(path)
    tensors = [*module.parameters(), *module.buffers()]
    # Batch norms take statistics in float32 with activations in bfloat16, and lose precision otherwise.
    if isinstance(module, _BatchNorm) or all(tensor.dtype == dtype for tensor in tensors):
        return module
    return copy.deepcopy(module).to(dtype)


def _attribute(network: nn.Module, path: str, dtype: torch.dtype) -> Any:
    owner, _, name = path.rpartition(".")
    value = getattr(network.get_submodule(owner), name)
    return value.detach().to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _plain_layer(step: LayerStep, layer: AnyLayer, weight: Tensor, bias: Tensor | None) -> Step:
    source, other, activation = step.input, step.other, step.activation
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)

    def run(values: list[Any]) -> Any:
        if isinstance(layer, nn.Linear):
            result = F.linear(values[source], weight, bias)
        else:
            result = layer._conv_forward(values[source], weight, bias)
        if other is not None:
            result = result + values[other]
        return result if activation is None else activation(result)

    return run
