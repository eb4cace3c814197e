"""The gate of every export: the graphs must compute what the model computes.

The reference is transformers' own forward in float32, not the code that was traced; only the value
path, which transformers lacks, comes from `model.features`.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model

from model.features import vision_features
from model.graphs import TEXT_FILE, VISION_FILE
from model.manifest import Manifest, ParityEntry, ParityLimits
from model.runtime.base import Runtime, VisionOutput
from model.segmentation import l2_normalize, upsample_bilinear

THRESHOLD = 1e-4
REFERENCE = f"transformers Tipsv2Model, torch {torch.__version__}, float32"
FloatArray = NDArray[np.float32]


class ParityError(ValueError):
    """An exported graph does not compute what the model computes."""


@dataclass(slots=True)
class _Distance:
    """The largest differences seen so far."""

    sizes: list[tuple[int, ...]] = field(default_factory=list)
    max_abs_diff: float = 0.0
    min_cosine_cls: float | None = None
    min_cosine_patches: float | None = None

    def add(self, exported: FloatArray, reference: FloatArray) -> None:
        """Compare arrays of embeddings of one shape: [B, D] is global, [B, N, D] of patches."""
        if exported.shape != reference.shape:
            raise ParityError(f"shape {exported.shape} instead of {reference.shape}")
        difference = np.abs(exported - reference).max()
        # A NaN must not pass: max() would drop it.
        self.max_abs_diff = float(np.maximum(self.max_abs_diff, difference))
        cosine = float((l2_normalize(exported) * l2_normalize(reference)).sum(axis=-1).min())
        if exported.ndim == 3:
            self.min_cosine_patches = _lower(self.min_cosine_patches, cosine)
        else:
            self.min_cosine_cls = _lower(self.min_cosine_cls, cosine)

    def entry(self, file: str, runtime: Runtime) -> ParityEntry:
        """The manifest's record of this comparison.

        Raises:
            ParityError: It is not below the threshold.
        """
        if not self.max_abs_diff < THRESHOLD:
            raise ParityError(
                f"{file} on {runtime.name} differs from {REFERENCE} by {self.max_abs_diff:.3g}, "
                f"allowed is {THRESHOLD:.0e}; sizes {self.sizes}. Nothing was written: mend the "
                "export, or look for weights that overflow"
            )
        return ParityEntry(
            file=file,
            runtime=runtime.name,
            precision=runtime.precision,
            reference=REFERENCE,
            sizes=self.sizes,
            max_abs_diff=self.max_abs_diff,
            min_cosine_cls=self.min_cosine_cls,
            min_cosine_patches=self.min_cosine_patches,
            limits=ParityLimits(max_abs_diff=THRESHOLD),
        )


def _lower(lowest: float | None, cosine: float) -> float:
    """The lower of the two; a NaN stays."""
    return cosine if lowest is None else float(np.minimum(lowest, cosine))


def check_parity(model: Tipsv2Model, runtime: Runtime, manifest: Manifest) -> list[ParityEntry]:
    """Compare a runtime's outputs with the model's, on squares, oblongs and several batches.

    Args:
        model: In float32 and evaluation mode.
        runtime: Loaded with the exported graphs.
        manifest: Gives the sizes to try.

    Raises:
        ParityError: The largest difference is not below `THRESHOLD`.
    """
    vision = _Distance()
    for pixels_B3HW in _pictures(manifest):
        exported = runtime.encode_images(pixels_B3HW)
        reference = reference_vision(model, pixels_B3HW)
        vision.sizes.append((len(pixels_B3HW), *pixels_B3HW.shape[2:]))
        vision.add(exported.cls1_BD, reference.cls1_BD)
        vision.add(exported.cls2_BD, reference.cls2_BD)
        vision.add(exported.patches_BND, reference.patches_BND)
        vision.add(exported.values_BND, reference.values_BND)
    text = _Distance()
    for token_ids_BL, mask_BL in _texts(manifest, model.text_model.config.vocab_size):
        text.sizes.append(token_ids_BL.shape)
        text.add(
            runtime.encode_texts(token_ids_BL, mask_BL),
            reference_text(model, token_ids_BL, mask_BL),
        )
    return [vision.entry(VISION_FILE, runtime), text.entry(TEXT_FILE, runtime)]


@torch.no_grad()
def reference_vision(model: Tipsv2Model, pixels_B3HW: FloatArray) -> VisionOutput:
    """Vision embeddings by transformers' forward; values by `model.features`."""
    pixels = torch.from_numpy(pixels_B3HW)
    tokens_BTD = model.vision_model(pixel_values=pixels).last_hidden_state.numpy()
    patch_size = model.vision_model.embeddings.patch_embeddings.projection.stride[0]
    return VisionOutput(
        cls1_BD=tokens_BTD[:, 0],
        cls2_BD=tokens_BTD[:, 1],
        patches_BND=tokens_BTD[:, 2:],
        values_BND=vision_features(model, pixels).values_BND.numpy(),
        grid_hw=(pixels.shape[2] // patch_size, pixels.shape[3] // patch_size),
    )


@torch.no_grad()
def reference_text(
    model: Tipsv2Model, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
) -> FloatArray:
    """Text embeddings [B, D] by transformers' forward."""
    output = model.text_model(
        input_ids=torch.from_numpy(token_ids_BL), attention_mask=torch.from_numpy(mask_BL)
    )
    embeddings_BD: FloatArray = output.pooler_output.numpy()
    return embeddings_BD


def _pictures(manifest: Manifest) -> Iterator[FloatArray]:
    """Picture-like noise of many sizes: squares, oblongs both ways, one patch, several batches."""
    unit, native = manifest.size_multiple, manifest.native_size
    short, long = max(unit, native // 2 // unit * unit), native + unit
    sizes = [(1, native, native), (3, native, native), (2, short, long), (2, long, short)]
    sizes += [(1, unit, unit), (1, unit, long), (1, min(2 * native, manifest.max_size), native)]
    generator = np.random.default_rng(0)
    for batch, height, width in sizes:
        coarse = generator.random((batch * 3, 6, 6), dtype=np.float32)
        smooth = upsample_bilinear(coarse, (height, width)).reshape(batch, 3, height, width)
        grain = generator.random(smooth.shape, dtype=np.float32)
        yield (0.8 * smooth + 0.2 * grain).astype(np.float32)


def _texts(
    manifest: Manifest, vocab_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Random tokens of many lengths, alone and padded."""
    generator = np.random.default_rng(1)
    longest = manifest.max_text_tokens
    for batch, length in [(1, 1), (3, min(7, longest)), (8, longest)]:
        lengths_B = generator.integers(1, length + 1, size=batch)
        lengths_B[0] = length
        mask_BL = (np.arange(length) < lengths_B[:, None]).astype(np.int64)
        token_ids_BL = generator.integers(1, vocab_size, size=(batch, length)) * mask_BL
        yield token_ids_BL, mask_BL
