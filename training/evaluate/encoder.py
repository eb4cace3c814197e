"""Encodes images, names and captions with an encoder in torch for evaluation.

Shapes: B images, S their side in pixels, T texts, K names, N patches, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from model.encoder import Encoder, load_encoder
from model.preprocess import prepare_image
from model.segmentation import average_prompts
from model.text import TEMPLATES

_BATCH = 64


def load_for_evaluation(folder: Path) -> Encoder:
    """Load a finished encoder to run on a CPU."""
    encoder = load_encoder(folder)
    for module in (*encoder.vision.modules(), *encoder.text.modules()):
        if isinstance(module, PreTrainedModel):
            # On a CPU, plain matrix products are faster for so few tokens than the fused kernel.
            module.set_attn_implementation("eager")
    return encoder


@torch.inference_mode()
def encode_images(
    encoder: Encoder, images: Sequence[NDArray[np.uint8]]
) -> dict[str, NDArray[np.float32]]:
    """Features of images of one size.

    Args:
        encoder: In evaluation mode.
        images: uint8 RGB [S, S, 3] each, at least one. They are scaled to the native size if S is
            no size that the encoder takes.

    Returns:
        "cls1" and "cls2" [B, D], "patches" and "values" [B, N, D], as the model gives them.
    """
    side = images[0].shape[0]
    if side % encoder.size_multiple:
        side = encoder.native_size
    parts = []
    for start in range(0, len(images), _BATCH):
        chosen = images[start : start + _BATCH]
        pixels_B3SS = np.stack([prepare_image(pixels_SS3, (side, side)) for pixels_SS3 in chosen])
        parts.append(encoder.vision(torch.from_numpy(pixels_B3SS)))
    names = ("cls1", "cls2", "patches", "values")
    return {
        name: torch.cat(outputs).numpy()
        for name, outputs in zip(names, zip(*parts, strict=True), strict=True)
    }


@torch.inference_mode()
def encode_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings [T, D] of texts, not normalised."""
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = encoder.tokenizer.encode(texts[start : start + _BATCH])
        ids_BL, mask_BL = torch.from_numpy(batch.token_ids_BL), torch.from_numpy(batch.mask_BL)
        parts.append(encoder.text(ids_BL, mask_BL).numpy())
    return np.concatenate(parts)


def encode_names(encoder: Encoder, names: Sequence[str], templates: str) -> NDArray[np.float32]:
    """Class embeddings [K, D] of unit length, each averaged over a template set."""
    prompts = [template.format(name) for name in names for template in TEMPLATES[templates]]
    texts_TD = encode_texts(encoder, prompts)
    by_name_KPD = texts_TD.reshape(len(names), -1, texts_TD.shape[1])
    return np.stack([average_prompts(prompts_PD) for prompts_PD in by_name_KPD])
