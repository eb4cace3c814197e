"""The encoder that a package is written from, whatever its network: what export and parity read.

`Tipsv2Encoder` is one implementation. Another one writes its `model_type` into config.json and adds
its loader to `LOADERS`; nothing else differs.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    Tipsv2Config,
    Tipsv2ImageProcessor,
    Tipsv2Model,
    Tipsv2Processor,
    Tipsv2Tokenizer,
)
from transformers.utils import logging

from model.features import vision_features
from model.graphs import Precision
from model.manifest import CpuRuntime
from model.text import TOKENIZER_FILE, TextTokenizer

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"


class EncoderError(ValueError):
    """A folder holds no encoder that can be loaded; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Towers:
    """Two towers and a name for them; see `Encoder` for inputs and outputs."""

    name: str
    vision: nn.Module
    text: nn.Module


class Encoder:
    """A network with a vision and a text tower, in float32 and evaluation mode.

    Attributes:
        vision: `pixel_values` float32 [B, 3, H, W] in [0, 1] to four embeddings, not normalised:
            cls1 [B, D], cls2 [B, D], patch_embeddings and value_embeddings [B, N, D] with patches
            in row-major order. H and W are any multiples of `size_multiple`.
        text: `input_ids` and `attention_mask` int64 [B, L] to text_embeddings [B, D], not
            normalised. A row of padding gives finite numbers.
        tokenizer: The tokenizer of the text tower, with its limit of tokens.
        variant: Short name of the network, such as "w192d6".
        embed_dim: Width of all embeddings.
        patch_size: Stride of the patches in pixels.
        native_size: Side in pixels of the square images that the network is best at.
        size_multiple: Heights and widths are multiples of it, and it is one of `patch_size`.
        max_text_tokens: Tokens of a text, with those that the tokenizer adds; others are cut off.
        temperature: Cosines are divided by it before a softmax over classes.
        cpu_runtime: Better for this network in float32 on CPUs than the usual first runtime.
        cpu_precision: To prefer on CPUs with `cpu_runtime`, if a package has its graph.
    """

    vision: nn.Module
    text: nn.Module
    tokenizer: TextTokenizer
    variant: str
    embed_dim: int
    patch_size: int
    native_size: int
    size_multiple: int
    max_text_tokens: int
    temperature: float
    cpu_runtime: CpuRuntime | None = None
    cpu_precision: Precision | None = None

    @property
    def reference(self) -> Towers:
        """What exported graphs are compared with; not the traced code, where there is other."""
        return Towers(name=type(self).__name__, vision=self.vision, text=self.text)

    def save(self, folder: Path) -> None:
        """Write config.json with a `model_type`, model.safetensors and tokenizer.json.

        Weights are never a pickle.
        """
        raise NotImplementedError


class _OfModel(nn.Module):
    """A part of a model, in its mode."""

    def __init__(self, model: Tipsv2Model) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)


class VisionGraph(_OfModel):
    """The vision tower with the four outputs that serving reads, as a plain tuple."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return cls1 [B, D], cls2 [B, D], patches [B, N, D] and value-path patches [B, N, D]."""
        features = vision_features(self.model, pixel_values)
        return features.cls1_BD, features.cls2_BD, features.patches_BND, features.values_BND


class TextGraph(_OfModel):
    """The text tower with a mean over tokens that stays finite for a row of padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return text embeddings [B, D]; zeros for a row without tokens."""
        output = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask)
        hidden_BLD: Tensor = output.last_hidden_state
        weight_BL = attention_mask.to(hidden_BLD.dtype)
        total_BD = (hidden_BLD * weight_BL[..., None]).sum(dim=1)
        # Equal to transformers' `+ 1e-8` for every row that has a token.
        mean_BD: Tensor = total_BD / weight_BL.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_BD


class _TransformersVision(_OfModel):
    """The vision tower by transformers' forward; only the value path is ours."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tokens_BTD: Tensor = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        values_BND = vision_features(self.model, pixel_values).values_BND
        return tokens_BTD[:, 0], tokens_BTD[:, 1], tokens_BTD[:, 2:], values_BND


class _TransformersText(_OfModel):
    """The text tower by transformers' forward."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask)
        embeddings_BD: Tensor = output.pooler_output
        return embeddings_BD


class Tipsv2Encoder(Encoder):
    """transformers' Tipsv2Model, in float32 and evaluation mode, and its tokenizer."""

    def __init__(self, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer) -> None:
        self.model = model
        self._saved_tokenizer = tokenizer
        self.vision, self.text = VisionGraph(model), TextGraph(model)
        config, embeddings = model.vision_model.config, model.vision_model.embeddings
        self.variant = f"w{config.hidden_size}d{config.num_hidden_layers}"
        self.embed_dim = config.hidden_size
        self.patch_size = embeddings.patch_embeddings.projection.stride[0]
        self.size_multiple = self.patch_size
        # Of the square that the position embeddings were learnt for.
        num_positions = embeddings.position_embeddings.shape[1] - 1
        self.native_size = math.isqrt(num_positions) * self.patch_size
        self.max_text_tokens = model.text_model.config.max_position_embeddings
        self.temperature = model.temperature.item()
        self.tokenizer = TextTokenizer(tokenizer.backend_tokenizer, max_tokens=self.max_text_tokens)

    @classmethod
    def load(cls, folder: Path) -> "Tipsv2Encoder":
        """Load a `save_pretrained` folder with safetensors; EncoderError if weights are missing."""
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        # Typed for loading from a folder.
        build: Any = Tipsv2Model.from_pretrained
        with quiet_transformers():
            model, report = build(
                None,
                config=Tipsv2Config.from_dict(without_implementations(settings)),
                state_dict=load_file(folder / WEIGHTS_FILE),
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        if report["missing_keys"]:
            raise EncoderError(
                f"{folder} lacks weights: {sorted(report['missing_keys'])}; save the whole "
                "Tipsv2Model"
            )
        return cls(model.eval(), read_tokenizer(folder))

    @property
    def reference(self) -> Towers:
        """Transformers' own forward, so that the traced code is proven too."""
        name = f"transformers {type(self.model).__name__}"
        vision, text = _TransformersVision(self.model), _TransformersText(self.model)
        return Towers(name=name, vision=vision, text=text)

    def save(self, folder: Path) -> None:
        """Write transformers' layout, with a processor for the native size."""
        self.model.save_pretrained(folder)
        side = {"height": self.native_size, "width": self.native_size}
        processor = Tipsv2Processor(
            image_processor=Tipsv2ImageProcessor(size=side), tokenizer=self._saved_tokenizer
        )
        processor.save_pretrained(folder)


def _load_cells(folder: Path) -> Encoder:
    from model.cell_encoder import CellEncoder  # noqa: PLC0415  it imports this module

    return CellEncoder.load(folder)


# Loader of an encoder from a folder that `Encoder.save` wrote, by config.json's `model_type`.
LOADERS: Final[dict[str, Callable[[Path], Encoder]]] = {
    Tipsv2Config.model_type: Tipsv2Encoder.load,
    "tipserve_cells": _load_cells,
}


def load_encoder(folder: Path) -> Encoder:
    """Load the encoder that `Encoder.save` wrote, in float32 and evaluation mode.

    Raises:
        EncoderError: The folder has no weights, or is of a kind that this program cannot load.
    """
    kind = saved_kind(folder)
    if kind is None:
        raise EncoderError(
            f"{folder / CONFIG_FILE} names no model_type; a package's encoder has one: export the "
            "model again"
        )
    if kind not in LOADERS:
        raise EncoderError(
            f"{folder} holds an encoder of type {kind!r}, which torch cannot load here (known: "
            f"{', '.join(LOADERS)}); its graphs run with onnx, openvino and tensorrt"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise EncoderError(
            f"{folder} has graphs only and no {WEIGHTS_FILE}; use the folder that the package was "
            "exported from"
        )
    return LOADERS[kind](folder)


def saved_kind(folder: Path) -> str | None:
    """The `model_type` of a folder's config.json; None if there is none."""
    try:
        kind = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return str(kind)


def read_tokenizer(folder: Path) -> Tipsv2Tokenizer:
    """Read the `tokenizer.json` of a Tipsv2Model with the normaliser of the file."""
    tokenizer: Tipsv2Tokenizer = Tipsv2Tokenizer.from_pretrained(folder, local_files_only=True)
    # transformers makes a normaliser of its own in place of the file's.
    normalizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).normalizer
    if normalizer is not None and normalizer.normalize_str("A") == "a":
        tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide progress bars and warnings of transformers; our errors report the same problems."""
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def without_implementations(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop settings that may name a kernel on the hub: transformers would download and run it."""
    return {
        name: without_implementations(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if not name.endswith(("_implementation", "_implementation_internal"))
    }
