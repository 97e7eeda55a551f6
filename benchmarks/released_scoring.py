"""Scoring as AMC's released code does it: full size, a DataLoader over files, one regression per layer."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from backends.gram import (
    RefittedLayer,
    feature_indices,
    feature_size,
    features_at,
    num_positions,
    outputs_at,
    refitted_at,
    sample_positions,
    weight_from_rows,
)
from backends.surgery import mask
from benchmarks.scoring_setting import BATCH, POSITIONS, Setting, batched

LOADER_BATCH, LOADER_WORKERS = 50, 16


def through_loader(network: nn.Module, files: Subset[Any], num_workers: int) -> Tensor:
    loader = DataLoader(files, batch_size=LOADER_BATCH, num_workers=num_workers)
    return torch.cat([network(images) for images, _ in loader])


class Regressions:
    """Least squares as AMC's released code does it: one regression per layer with cut inputs, on dense features."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        keep = setting.space.keep_mask(setting.policy)
        self._kept = {
            site.parameter.removesuffix(".weight"): torch.from_numpy(np.flatnonzero(keep[site.units]))
            for site in setting.space.sites
            if site.dim == 1
        }
        self._samples: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in self._kept}
        dense, generator = copy.deepcopy(setting.model), torch.Generator().manual_seed(0)

        def hook(name: str, layer: RefittedLayer, args: tuple[Tensor, ...], output: Tensor) -> None:
            available = num_positions(layer, output.shape)
            positions = sample_positions(len(output), available, POSITIONS, generator)
            features, outputs = self._samples[name]
            features.append(features_at(layer, args[0], positions)[:, 0])
            outputs.append(outputs_at(layer, output, positions))

        for name in self._kept:
            refitted_at(dense, name).register_forward_hook(functools.partial(hook, name))
        batched(dense, setting.calibration.images, BATCH)

    @property
    def num_bytes(self) -> int:
        """What the released code keeps in memory for it."""
        return sum(4 * part.numel() for lists in self._samples.values() for parts in lists for part in parts)

    def __call__(self) -> nn.Module:
        network = mask(self._setting.model, self._setting.space, self._setting.policy)
        for name, (features, outputs) in self._samples.items():
            layer = refitted_at(network, name)
            columns = feature_indices(layer, self._kept[name])
            found = LinearRegression(fit_intercept=False).fit(torch.cat(features)[:, columns], torch.cat(outputs))
            rows = torch.zeros(1, len(layer.weight), feature_size(layer))
            rows[0][:, columns] = torch.from_numpy(found.coef_).float()
            layer.weight.copy_(weight_from_rows(layer, rows))
        return network
