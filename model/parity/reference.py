"""Outputs of the model in float32, computed once and compared with every export.

The reference is `Encoder.reference`: of a Tipsv2Model transformers' own forward, not the code that
was traced.

Shapes: B batch, N patches, L tokens, D embedding width, K classes, P prompts, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Tipsv2DptForDensePrediction

from model.encoder import Encoder, Towers
from model.graphs import DenseTask
from model.manifest import Manifest
from model.package import ModelPackage, Progress
from model.parity.inputs import (
    CLASS_NAMES,
    FloatArray,
    TextInput,
    TokenArray,
    VisionInput,
    image_inputs,
    tokenized,
)
from model.parity.measure import Reference, TextCase, VisionCase, counted, segmenting_features
from model.parity.recorded import RECORDED_TEXTS, Thumbnails, enlarged, gate_thumbnails
from model.runtime.base import Runtime, VisionOutput
from model.runtime.graph_runtime import parts_of
from model.segmentation import average_groups, cosine_map, segment, upsample_bilinear
from model.text import TEMPLATES, TextTokenizer, fill
from model.winner_map import Labels

# The model's dense heads in float32: pixels to what `Runtime.estimate` returns for each.
DenseReference = Callable[[FloatArray], Mapping[DenseTask, FloatArray]]
DENSE_FIELDS: Final[dict[DenseTask, str]] = {
    "depth": "predicted_depth",
    "normals": "normals",
    "segmentation": "segmentation_logits",
}
# If the best two cosines of a pixel differ by less, either class is a good answer.
CLEAR_MARGIN: Final = 0.01


def recorded_reference(
    encoder: Encoder, package: ModelPackage, *, dense: DenseReference | None = None
) -> tuple[Reference, Thumbnails]:
    """Run the encoder on what a package keeps for `model.parity.recorded`; see `run_model`.

    Returns:
        The outputs, with one case of images and one of texts, and the images.
    """
    manifest = package.manifest
    text = tokenized(TextTokenizer.from_package(package), RECORDED_TEXTS)
    thumbnails = gate_thumbnails()
    side = manifest.map_side(manifest.native_size) if dense else manifest.native_size
    images = enlarged(thumbnails, (side, side))
    return run_model(encoder, package, images=[images], texts=[text], dense=dense), thumbnails


@torch.no_grad()
def head_reference(
    package: ModelPackage, runtime: Runtime, heads: Mapping[DenseTask, nn.Module]
) -> Reference:
    """Run heads that read embeddings on the images of the gate, without the encoder.

    Args:
        package: Has the vision graph.
        runtime: Computes the embeddings, which the package's own parity covers.
        heads: Modules from `TAPS` to their outputs, in float32 and evaluation mode.
    """
    manifest = package.manifest
    cases = []
    for given in image_inputs(manifest):
        if not _suits_heads(given, manifest):
            continue
        output = runtime.encode_images(given.pixels_B3HW)
        cls_B1D = torch.from_numpy(output.cls1_BD[:, None])
        patches_BND = torch.from_numpy(output.patches_BND)
        patches_B1hwD = patches_BND.unflatten(1, output.grid_hw)[:, None]
        maps = {task: head(cls_B1D, patches_B1hwD).numpy() for task, head in heads.items()}
        cases.append(VisionCase(given=given, output=output, masks=(), dense=maps))
    return Reference(
        name=f"torch {torch.__version__}, float32, on embeddings of {runtime.name}",
        features=manifest.zero_shot.features,
        cpu_precision=manifest.cpu_precision,
        classes_KD=np.zeros((0, manifest.embed_dim), np.float32),
        vision=tuple(cases),
        text=(),
    )


@torch.no_grad()
def reference_vision(towers: Towers, pixels_B3HW: FloatArray, patch_size: int) -> VisionOutput:
    """Vision embeddings of the reference."""
    outputs = towers.vision(torch.from_numpy(pixels_B3HW))
    cls1_BD, cls2_BD, patches_BND, values_BND = (output.numpy() for output in outputs)
    height, width = pixels_B3HW.shape[2:]
    return VisionOutput(
        cls1_BD=cls1_BD,
        cls2_BD=cls2_BD,
        patches_BND=patches_BND,
        values_BND=values_BND,
        grid_hw=(height // patch_size, width // patch_size),
    )


@torch.no_grad()
def reference_text(towers: Towers, token_ids_BL: TokenArray, mask_BL: TokenArray) -> FloatArray:
    """Text embeddings [B, D] of the reference."""
    output = towers.text(torch.from_numpy(token_ids_BL), torch.from_numpy(mask_BL))
    embeddings_BD: FloatArray = output.numpy()
    return embeddings_BD


def dense_reference(dense: Tipsv2DptForDensePrediction | None) -> DenseReference | None:
    """All heads by transformers' forward, after one pass through the backbone."""
    return None if dense is None else partial(_dense_maps, dense)


@torch.no_grad()
def _dense_maps(
    dense: Tipsv2DptForDensePrediction, pixels_B3HW: FloatArray
) -> Mapping[DenseTask, FloatArray]:
    # The heads work in 0.6 GB for an image of 448 x 448.
    parts = []
    for part in parts_of({"pixel_values": pixels_B3HW}):
        outputs = dense(torch.from_numpy(part["pixel_values"]))
        parts.append({task: getattr(outputs, name).numpy() for task, name in DENSE_FIELDS.items()})
    return {task: np.concatenate([maps[task] for maps in parts]) for task in DENSE_FIELDS}


def run_model(
    encoder: Encoder,
    package: ModelPackage,
    *,
    images: Sequence[VisionInput],
    texts: Sequence[TextInput],
    dense: DenseReference | None,
    progress: Progress = lambda _: None,
) -> Reference:
    """Run the model on images and texts.

    Args:
        encoder: In float32 and evaluation mode.
        package: Its package, for tokenizer and manifest.
        images: All inputs of the vision tower.
        texts: All inputs of the text tower, apart from the prompts of the masks' classes.
        dense: The package's heads; images that suit them are run through them.
        progress: Called with each input.
    """
    manifest, towers = package.manifest, encoder.reference
    names = [fill(name, TEMPLATES[manifest.zero_shot.templates]) for name in CLASS_NAMES]
    tokenizer = TextTokenizer.from_package(package)
    prompts = tokenized(tokenizer, [prompt for group in names for prompt in group])
    prompts_PD = reference_text(towers, prompts.token_ids_BL, prompts.mask_BL)
    classes_KD = average_groups(prompts_PD, tuple(map(len, names)))
    features = manifest.zero_shot.features
    vision, text = [], []
    for given in counted(images, "running the model in torch, as the reference", progress):
        output = reference_vision(towers, given.pixels_B3HW, manifest.patch_size)
        items_BND = segmenting_features(output, features)
        maps = dense(given.pixels_B3HW) if dense and _suits_heads(given, manifest) else {}
        vision.append(
            VisionCase(
                given=given,
                output=output,
                masks=tuple(
                    _mask(item_ND, classes_KD, output.grid_hw, size_hw)
                    for item_ND, size_hw in zip(items_BND, given.mask_sizes, strict=True)
                ),
                dense=maps,
            )
        )
    for given_text in texts:
        output_BD = reference_text(towers, given_text.token_ids_BL, given_text.mask_BL)
        text.append(TextCase(given=given_text, output_BD=output_BD))
    return Reference(
        name=f"{towers.name}, torch {torch.__version__}, float32",
        features=features,
        cpu_precision=manifest.cpu_precision,
        classes_KD=classes_KD,
        vision=tuple(vision),
        text=tuple(text),
        prompts=prompts,
        prompts_of_class=tuple(map(len, names)),
    )


def _suits_heads(given: VisionInput, manifest: Manifest) -> bool:
    """Whether these are images of a size that dense heads take."""
    sides = given.pixels_B3HW.shape[2:]
    return all(side % manifest.map_multiple == 0 for side in sides)


def _mask(
    features_ND: FloatArray,
    classes_KD: FloatArray,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> tuple[Labels, NDArray[np.bool_]]:
    """Labels of an image, by the code of the server, and the pixels with a clear winner."""
    labels_HW = segment(features_ND, classes_KD, grid_hw=grid_hw, size_hw=size_hw).labels_HW
    cosine_KHW = upsample_bilinear(cosine_map(features_ND, classes_KD, grid_hw), size_hw)
    second_HW, best_HW = np.partition(cosine_KHW, (-2, -1), axis=0)[-2:]
    return labels_HW, best_HW - second_HW >= CLEAR_MARGIN
