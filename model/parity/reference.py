"""Outputs of the model in float32, computed once and compared with every export.

The reference is transformers' own forward, not the code that was traced; only the value path,
which transformers lacks, is from `model.features`.

Shapes: B batch, N patches, L tokens, D embedding width, K classes, H W pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from transformers import Tipsv2DptForDensePrediction, Tipsv2Model

from model.features import vision_features
from model.graphs import DenseTask
from model.manifest import Manifest
from model.package import ModelPackage
from model.parity.distance import ReferenceMask, reference_mask
from model.parity.inputs import (
    BUDGET_GFLOP,
    CLASS_NAMES,
    FloatArray,
    TextInput,
    TokenArray,
    VisionInput,
    image_inputs,
    plan_sizes,
    text_inputs,
)
from model.runtime.base import VisionOutput
from model.segmentation import average_groups
from model.text import TEMPLATES, TextTokenizer, fill

# A dense head of the model in float32: pixels to what `Runtime.estimate` returns.
DenseReference = Callable[[FloatArray], FloatArray]
DENSE_FIELDS: Final[dict[DenseTask, str]] = {
    "depth": "predicted_depth",
    "normals": "normals",
    "segmentation": "segmentation_logits",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionCase:
    """Images and the model's outputs; masks and dense maps of real images only."""

    given: VisionInput
    output: VisionOutput
    masks: tuple[ReferenceMask, ...]
    dense: Mapping[DenseTask, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCase:
    """Texts and their embeddings."""

    given: TextInput
    output_BD: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassPrompts:
    """The prompts of all classes; `sizes` is the number of prompts of each class."""

    given: TextInput
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Everything that exports are compared with.

    Attributes:
        name: What computed it, for the manifest.
        features: Patch features to segment with: "values" or "patches".
        prompts: Prompts of the classes.
        classes_KD: Embeddings of the classes.
    """

    name: str
    features: str
    prompts: ClassPrompts
    classes_KD: FloatArray
    vision: tuple[VisionCase, ...]
    text: tuple[TextCase, ...]


def build_reference(
    model: Tipsv2Model,
    package: ModelPackage,
    *,
    dense: Mapping[DenseTask, DenseReference] | None = None,
    budget_gflop: float = BUDGET_GFLOP,
) -> Reference:
    """Run the model on all inputs of the gate.

    Args:
        model: The model in float32 and evaluation mode.
        package: Its package, for tokenizer and manifest.
        dense: The dense heads of the package.
        budget_gflop: See `plan_sizes`.
    """
    manifest = package.manifest
    tokenizer = TextTokenizer.from_package(package)
    prompts = class_prompts(tokenizer, manifest)
    given = prompts.given
    prompts_PD = reference_text(model, given.token_ids_BL, given.mask_BL)
    classes_KD = average_groups(prompts_PD, prompts.sizes)
    sizes = plan_sizes(
        manifest,
        num_blocks=model.vision_model.config.num_hidden_layers,
        budget_gflop=budget_gflop,
    )
    texts = text_inputs(tokenizer, model.text_model.config.vocab_size)
    features = manifest.zero_shot.features
    return Reference(
        name=f"transformers {type(model).__name__}, torch {torch.__version__}, float32",
        features=features,
        prompts=prompts,
        classes_KD=classes_KD,
        vision=tuple(
            _vision_case(
                model,
                given,
                classes_KD=classes_KD,
                features=features,
                dense=(dense or {}) if _suits_heads(given, manifest) else {},
            )
            for given in image_inputs(manifest, sizes)
        ),
        text=tuple(
            TextCase(given=text, output_BD=reference_text(model, text.token_ids_BL, text.mask_BL))
            for text in texts
        ),
    )


def class_prompts(tokenizer: TextTokenizer, manifest: Manifest) -> ClassPrompts:
    """The class names in the prompt templates of the package."""
    prompts = [fill(name, TEMPLATES[manifest.zero_shot.templates]) for name in CLASS_NAMES]
    tokens = tokenizer.encode([prompt for group in prompts for prompt in group])
    given = TextInput(token_ids_BL=tokens.token_ids_BL, mask_BL=tokens.mask_BL, is_real=True)
    return ClassPrompts(given=given, sizes=tuple(map(len, prompts)))


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
def reference_text(model: Tipsv2Model, token_ids_BL: TokenArray, mask_BL: TokenArray) -> FloatArray:
    """Text embeddings [B, D] by transformers' forward."""
    output = model.text_model(
        input_ids=torch.from_numpy(token_ids_BL), attention_mask=torch.from_numpy(mask_BL)
    )
    embeddings_BD: FloatArray = output.pooler_output.numpy()
    return embeddings_BD


def dense_references(
    dense: Tipsv2DptForDensePrediction | None,
) -> dict[DenseTask, DenseReference]:
    """Reference of each head by transformers' forward; empty for None."""
    if dense is None:
        return {}
    return {task: partial(_dense_map, dense, name) for task, name in DENSE_FIELDS.items()}


@torch.no_grad()
def _dense_map(
    dense: Tipsv2DptForDensePrediction, name: str, pixels_B3HW: FloatArray
) -> FloatArray:
    output_BHW: FloatArray = getattr(dense(torch.from_numpy(pixels_B3HW)), name).numpy()
    return output_BHW


def segmenting_features(output: VisionOutput, features: str) -> FloatArray:
    """The patch features [B, N, D] to segment with: "values" or "patches"."""
    return output.values_BND if features == "values" else output.patches_BND


def _suits_heads(given: VisionInput, manifest: Manifest) -> bool:
    """Whether these are real images of a size that dense heads take."""
    sides = given.pixels_B3HW.shape[2:]
    return given.is_real and all(side % manifest.map_multiple == 0 for side in sides)


def _vision_case(
    model: Tipsv2Model,
    given: VisionInput,
    *,
    classes_KD: FloatArray,
    features: str,
    dense: Mapping[DenseTask, DenseReference],
) -> VisionCase:
    output = reference_vision(model, given.pixels_B3HW)
    items_BND = segmenting_features(output, features)[: len(given.mask_sizes)]
    return VisionCase(
        given=given,
        output=output,
        masks=tuple(
            reference_mask(item_ND, classes_KD, output.grid_hw, size_hw)
            for item_ND, size_hw in zip(items_BND, given.mask_sizes, strict=True)
        ),
        dense={task: head(given.pixels_B3HW) for task, head in dense.items()},
    )
