"""Encodes scenes and names with a torch model for evaluation, once per scene.

Shapes: B batch, K names, N patches, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.features import vision_features
from model.segmentation import average_prompts
from model.text import TEMPLATES
from training.data.batch import tokenize
from training.data.scenes import Scene
from training.methods.terms import embed_texts

_BATCH = 64


class SceneEncoder:
    """Features of scenes by identity, float32."""

    def __init__(
        self, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, scenes: Sequence[Scene]
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._row = {id(scene): number for number, scene in enumerate(scenes)}
        parts = [self._encode(scenes[i : i + _BATCH]) for i in range(0, len(scenes), _BATCH)]
        self._features = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    @torch.inference_mode()
    def _encode(self, scenes: Sequence[Scene]) -> dict[str, NDArray[np.float32]]:
        pixels = torch.from_numpy(np.stack([scene.pixels_SS3 for scene in scenes]))
        features = vision_features(self._model, pixels.permute(0, 3, 1, 2).float() / 255.0)
        return {
            "cls1": features.cls1_BD.numpy(),
            "cls2": features.cls2_BD.numpy(),
            "patches": features.patches_BND.numpy(),
            "values": features.values_BND.numpy(),
        }

    def feature(self, kind: str, scene: Scene) -> NDArray[np.float32]:
        """One scene's "patches" or "values" [N, D], "cls1" or "cls2" [D]."""
        return np.asarray(self._features[kind][self._row[id(scene)]])

    @torch.inference_mode()
    def classes(self, names: Sequence[str], templates: str) -> NDArray[np.float32]:
        """Class embeddings [K, D], averaged over a template set."""
        rows = []
        for name in names:
            prompts = [template.format(name) for template in TEMPLATES[templates]]
            rows.append(
                average_prompts(
                    embed_texts(self._model, tokenize(self._tokenizer, prompts)).numpy()
                )
            )
        return np.stack(rows)
