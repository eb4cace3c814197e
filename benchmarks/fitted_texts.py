"""Fits the text tower of a model with random weights to clusters of its own patches.

With random texts the best two classes of nearly every patch are equal up to rounding, so that masks
differ at random and do not represent a trained model. So the text tower is fitted, for some steps,
to the means of clusters of patches.

Shapes: N patches, K classes, D width, L tokens.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Tipsv2Model

from model.features import vision_features
from model.parity.inputs import CLASS_NAMES, calibration_images, image_batch
from model.segmentation import l2_normalize
from model.text import TextTokenizer

PATCH: Final = 14
STEPS: Final = 40
LEARNING_RATE: Final = 3e-3
CLUSTER_ROUNDS: Final = 20


def fit_texts(model: Tipsv2Model, tokenizer_file: Path, side: int) -> float:
    """Train the text tower's embeddings of the gate's class names, and nothing else.

    Args:
        model: Model to fit, changed in place.
        tokenizer_file: Tokenizer of the model.
        side: Native side in pixels; the clustered images have half of it, at least a few patches.

    Returns:
        The mean cosine of the names with their clusters.
    """
    tokens = TextTokenizer(tokenizer_file).encode(CLASS_NAMES)
    token_ids_KL, mask_KL = torch.from_numpy(tokens.token_ids_BL), torch.from_numpy(tokens.mask_BL)
    small = max(side // 2 // PATCH, 4) * PATCH
    goal_KD = torch.from_numpy(_clusters(model, small, len(CLASS_NAMES)))
    tower = model.text_model
    weights = [tower.embeddings.token_embedding.weight, *tower.final_layer_norm.parameters()]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    cosine = torch.zeros(())
    for _ in range(STEPS):
        embeddings_KD = tower(input_ids=token_ids_KL, attention_mask=mask_KL).pooler_output
        cosine = F.cosine_similarity(embeddings_KD, goal_KD).mean()
        optimizer.zero_grad()
        (1 - cosine).backward()
        optimizer.step()
    model.requires_grad_(True).zero_grad()
    return cosine.item()


def _clusters(model: Tipsv2Model, side: int, num_classes: int) -> np.ndarray:
    """Return k-means directions [K, D] of value patches, relative to their common mean."""
    images = calibration_images()[:4]
    pixels_B3HW = torch.from_numpy(image_batch(images, (side, side), batch=4))
    with torch.no_grad():
        values_BND = vision_features(model, pixels_B3HW).values_BND.numpy()
    unit_ND = l2_normalize(values_BND.reshape(-1, values_BND.shape[-1]))
    unit_ND = l2_normalize(unit_ND - unit_ND.mean(axis=0))
    generator = np.random.default_rng(0)
    means_KD = unit_ND[
        generator.choice(len(unit_ND), num_classes, replace=len(unit_ND) < num_classes)
    ]
    for _ in range(CLUSTER_ROUNDS):
        nearest_N = (unit_ND @ means_KD.T).argmax(axis=1)
        grouped = [unit_ND[nearest_N == index] for index in range(num_classes)]
        # An empty cluster keeps its centre.
        means_KD = l2_normalize(
            np.stack(
                [
                    patches_ND.mean(axis=0) if len(patches_ND) else old_D
                    for patches_ND, old_D in zip(grouped, means_KD, strict=True)
                ]
            )
        )
    return means_KD
