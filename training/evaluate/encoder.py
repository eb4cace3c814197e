"""Encodes images, names and captions with a torch model for evaluation.

Shapes: B images, S their side in pixels, T texts, K names, N patches, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import text_features, vision_features
from model.segmentation import average_prompts
from model.text import TEMPLATES
from training.data.batch import tokenize
from training.data.scenes import Scene
from training.methods.teacher import MODEL_FOLDER


def find_model(folder: Path) -> Path:
    """The model folder of a run, or the folder itself if it holds a model.

    Raises:
        FileNotFoundError: There is none (yet).
    """
    for place in (folder / MODEL_FOLDER, folder):
        if (place / "config.json").exists():
            return place
    raise FileNotFoundError(
        f"{folder} has no model yet: it needs a {MODEL_FOLDER} folder, which a run has from its "
        "first validation on, or a config.json"
    )


_BATCH = 64


@torch.inference_mode()
def encode_images(
    model: Tipsv2Model, images: Sequence[NDArray[np.uint8]]
) -> dict[str, NDArray[np.float32]]:
    """Features of images of one size.

    Args:
        model: In evaluation mode.
        images: uint8 RGB [S, S, 3] each, at least one.

    Returns:
        "cls1" and "cls2" [B, D], "patches" and "values" [B, N, D], as the model gives them.
    """
    parts = []
    for start in range(0, len(images), _BATCH):
        pixels_BSS3 = torch.from_numpy(np.stack(images[start : start + _BATCH]))
        features = vision_features(model, pixels_BSS3.permute(0, 3, 1, 2).float() / 255.0)
        parts.append(
            {
                "cls1": features.cls1_BD.numpy(),
                "cls2": features.cls2_BD.numpy(),
                "patches": features.patches_BND.numpy(),
                "values": features.values_BND.numpy(),
            }
        )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@torch.inference_mode()
def encode_texts(
    model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Embeddings [T, D] of texts, not normalised."""
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenize(tokenizer, texts[start : start + _BATCH])
        parts.append(text_features(model, batch.token_ids_BL, batch.mask_BL).numpy())
    return np.concatenate(parts)


def encode_names(
    model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, names: Sequence[str], templates: str
) -> NDArray[np.float32]:
    """Class embeddings [K, D] of unit length, each averaged over a template set."""
    prompts = [template.format(name) for name in names for template in TEMPLATES[templates]]
    texts_TD = encode_texts(model, tokenizer, prompts)
    by_name_KPD = texts_TD.reshape(len(names), -1, texts_TD.shape[1])
    return np.stack([average_prompts(prompts_PD) for prompts_PD in by_name_KPD])


class SceneEncoder:
    """Features of scenes by identity, float32."""

    def __init__(
        self, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, scenes: Sequence[Scene]
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._row = {id(scene): number for number, scene in enumerate(scenes)}
        self.features = encode_images(model, [scene.pixels_SS3 for scene in scenes])

    def feature(self, kind: str, scene: Scene) -> NDArray[np.float32]:
        """One scene's "patches" or "values" [N, D], "cls1" or "cls2" [D]."""
        return np.asarray(self.features[kind][self._row[id(scene)]])

    def classes(self, names: Sequence[str], templates: str) -> NDArray[np.float32]:
        """Class embeddings [K, D], averaged over a template set."""
        return encode_names(self._model, self._tokenizer, names, templates)
