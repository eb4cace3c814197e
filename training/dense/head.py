"""Dense heads on frozen patch embeddings: their modules, and how they are fitted.

A head reads the first CLS token and the patches of the last layer, as one tap. It is linear, or has
the decoder of DPT on that tap: residual convolutions between which the grid doubles. Depth is the
mean of fixed distances, weighted by a score for each; segmentation has a logit for each class.

Shapes: P examples, B batch, D embedding width, K outputs, h w patch rows and columns, m rows and
columns of a map, eight times as many.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Tipsv2DptConfig
from transformers.models.tipsv2_dpt.modeling_tipsv2_dpt import (
    Tipsv2DptDecoder,
    Tipsv2DptFeatureFusionLayer,
    Tipsv2DptFeaturesToDepth,
)

from model.graphs import DenseTask
from training.losses.dense import angular_loss, depth_gradient_loss, scale_invariant_log_loss

HeadKind = Literal["linear", "dpt"]
# As the released heads: 256 distances from 1 mm to 10 m, and maps of eight rows for each patch.
NUM_BINS: Final = 256
MIN_DEPTH_M, MAX_DEPTH_M = 0.001, 10.0
MAP_SCALE: Final = 8
NUM_NORMALS: Final = 3
# In maps of classes: no label.
NO_CLASS: Final = -1
DPT_WIDTH: Final = 64
NUM_DOUBLINGS: Final = 2
# Source: configurations of facebookresearch/dinov2, evaluation of depth.
GRADIENT_WEIGHT: Final = 0.5
BATCH_SIZE: Final = 16
# At the rate of convolutions a linear head is far from its best after 400 steps; at its own rate
# they are unstable.
LEARNING_RATES: Final[Mapping[HeadKind, float]] = {"linear": 1e-2, "dpt": 2e-3}
WEIGHT_DECAY: Final = 1e-2
_SMALLEST_SPREAD: Final = 1e-4


Maps = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Frozen embeddings of images, and the maps to predict.

    Attributes:
        cls_PD: float16.
        patches_PhwD: float16.
        maps: float32 depth [P, m, m] in metres, 0 for none; float16 unit normals [P, 3, m, m],
            zero for none; or int16 classes [P, m, m] from 0, `NO_CLASS` for none.
        num_classes: K of segmentation.
    """

    cls_PD: NDArray[np.float16]
    patches_PhwD: NDArray[np.float16]
    maps: Maps
    num_classes: int = 0

    def num_outputs(self, task: DenseTask) -> int:
        """Numbers that a head estimates at each place."""
        return {"depth": NUM_BINS, "normals": NUM_NORMALS, "segmentation": self.num_classes}[task]


class _DptDecoder(nn.Module):
    """DPT's layers above its deepest tap."""

    def __init__(self, config: Tipsv2DptConfig, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Tipsv2DptFeatureFusionLayer(config, has_residual=False) for _ in range(NUM_DOUBLINGS)
        )
        self.decoder = Tipsv2DptDecoder(config, num_outputs)

    def forward(self, map_BChw: Tensor) -> Tensor:
        for part in self.layers:
            layer = cast("Tipsv2DptFeatureFusionLayer", part)
            map_BChw = layer.residual_layer2(map_BChw)
            map_BChw = F.interpolate(
                map_BChw, scale_factor=2.0, mode="bilinear", align_corners=True
            )
            map_BChw = layer.projection(map_BChw)
        outputs_BKhw: Tensor = self.decoder(map_BChw)
        return outputs_BKhw


class EmbeddingHead(nn.Module):
    """A head of one task.

    Args:
        task: What it estimates.
        width: D.
        kind: Linear, or with convolutions.
        num_outputs: K, see `Examples.num_outputs`.
    """

    def __init__(self, task: DenseTask, width: int, kind: HeadKind, num_outputs: int) -> None:
        super().__init__()
        self.task: DenseTask = task
        config = Tipsv2DptConfig(
            fusion_hidden_size=DPT_WIDTH,
            min_depth=MIN_DEPTH_M,
            max_depth=MAX_DEPTH_M,
            num_depth_bins=NUM_BINS,
        )
        readout = num_outputs if kind == "linear" else DPT_WIDTH
        self.patches = nn.Linear(width, readout)
        self.cls = nn.Linear(width, readout, bias=False)
        self.decoder = _DptDecoder(config, num_outputs) if kind == "dpt" else None
        self.scale = MAP_SCALE if kind == "linear" else MAP_SCALE // 2**NUM_DOUBLINGS
        self.to_metres = Tipsv2DptFeaturesToDepth(config)
        self.last = self.patches if self.decoder is None else self.decoder.decoder.head

    def forward(self, tap_cls: Tensor, tap_patches: Tensor) -> Tensor:
        """Return metres [B, m, m], vectors [B, 3, m, m] or logits [B, K, m, m].

        Args:
            tap_cls: [B, 1, D].
            tap_patches: [B, 1, h, w, D].
        """
        read_BhwK = self.patches(tap_patches[:, 0]) + self.cls(tap_cls[:, 0])[:, None, None]
        outputs_BKhw: Tensor = read_BhwK.permute(0, 3, 1, 2).contiguous()
        if self.decoder is not None:
            outputs_BKhw = self.decoder(F.gelu(outputs_BKhw, approximate="tanh"))
        if self.task == "depth":
            return _enlarge(self.to_metres(outputs_BKhw)[:, None], self.scale)[:, 0]
        return _enlarge(outputs_BKhw, self.scale)

    @torch.no_grad()
    def start(self, maps: Maps) -> None:
        """Begin with the mean of all maps: the share of each distance or class, or the normal."""
        self.last.weight.mul_(0.1)
        if self.task == "depth":
            limits = (MIN_DEPTH_M, MAX_DEPTH_M)
            counts_K, _ = np.histogram(maps, NUM_BINS, limits)
            # A distance whose score is below zero everywhere would not be learnt.
            bias_K = 0.1 + counts_K / max(counts_K.mean(), 1)
        elif self.task == "segmentation":
            counts_K = np.bincount(maps[maps >= 0].ravel(), minlength=self.last.out_features)
            bias_K = np.log((counts_K + 1) / (counts_K + 1).sum())
        else:
            bias_K = maps.mean(axis=(0, 2, 3), dtype=np.float64)
        self.last.bias.copy_(torch.from_numpy(bias_K))

    @torch.no_grad()
    def fold(self, patches: "Standard", cls: "Standard") -> None:
        """Make the head read raw embeddings, after it was fitted to standardised ones."""
        for layer, standard in ((self.patches, patches), (self.cls, cls)):
            layer.weight.div_(standard.spread_D)
            self.patches.bias.sub_(layer.weight @ standard.mean_D)


def _enlarge(map_BKhw: Tensor, scale: int) -> Tensor:
    return F.interpolate(map_BKhw, scale_factor=float(scale), mode="bilinear")


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """Mean and standard deviation of each number of an embedding."""

    mean_D: Tensor
    spread_D: Tensor

    @classmethod
    def of(cls, values: NDArray[np.float16]) -> "Standard":
        """Of embeddings [..., D]."""
        flat_ND = values.reshape(-1, values.shape[-1])
        mean_D = flat_ND.mean(axis=0, dtype=np.float64)
        square_D = np.zeros_like(mean_D)
        for first in range(0, len(flat_ND), 2**14):
            part_ND = flat_ND[first : first + 2**14].astype(np.float64) - mean_D
            square_D += (part_ND**2).sum(axis=0)
        spread_D = np.maximum(np.sqrt(square_D / len(flat_ND)), _SMALLEST_SPREAD)
        return cls(torch.from_numpy(mean_D).float(), torch.from_numpy(spread_D).float())

    def apply(self, values: NDArray[np.float16]) -> Tensor:
        """Embeddings with mean 0 and deviation 1."""
        return (torch.from_numpy(values.astype(np.float32)) - self.mean_D) / self.spread_D


def map_loss(task: DenseTask, found: Tensor, truth: Tensor) -> Tensor:
    """The loss of a batch of maps, a scalar: zero if fewer than two places of them count."""
    counts = truth != (NO_CLASS if task == "segmentation" else 0)
    if counts.sum() < 2:  # one error has no variance
        return found.sum() * 0
    if task == "segmentation":
        return F.cross_entropy(found, truth.long(), ignore_index=NO_CLASS)
    if task == "normals":
        return angular_loss(found, truth.float())
    gradient = depth_gradient_loss(found, truth.float())
    return scale_invariant_log_loss(found, truth.float()) + GRADIENT_WEIGHT * gradient


def fit_dense_head(
    examples: Examples, task: DenseTask, kind: HeadKind, *, num_steps: int, seed: int = 0
) -> EmbeddingHead:
    """Fit a head by AdamW; the result reads raw embeddings and is in evaluation mode.

    Embeddings are standardised for the fit, as the batch normalisation in front of DINOv2's heads
    does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = examples.cls_PD.shape[1]
        head = EmbeddingHead(task, width, kind, examples.num_outputs(task))
    head.start(examples.maps)
    patches, cls = Standard.of(examples.patches_PhwD), Standard.of(examples.cls_PD)
    rate = LEARNING_RATES[kind]
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=num_steps, pct_start=0.05
    )
    for batch in _batches(len(examples.cls_PD), num_steps, seed):
        found = head(
            cls.apply(examples.cls_PD[batch])[:, None],
            patches.apply(examples.patches_PhwD[batch])[:, None],
        )
        truth = torch.from_numpy(examples.maps[batch])
        optimizer.zero_grad()
        map_loss(task, found, truth).backward()
        optimizer.step()
        schedule.step()
    head.fold(patches, cls)
    return head.eval().requires_grad_(requires_grad=False)


def _batches(num_examples: int, num_steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices of each step's examples: all examples in a new order, again and again."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_examples)
    size = min(BATCH_SIZE, num_examples)
    for _ in range(num_steps):
        if len(order) < size:
            order = rng.permutation(num_examples)
        yield order[:size]
        order = order[size:]
