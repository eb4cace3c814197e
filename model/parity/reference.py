"""Outputs of the model in float32, computed once and compared with every export.

The reference is `Encoder.reference`: of a Tipsv2Model transformers' own forward, not the code that
was traced.

Shapes: B batch, N patches, L tokens, D embedding width, K classes, P prompts, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Tipsv2DptForDensePrediction

from model.encoder import Encoder, Towers
from model.graphs import DenseTask
from model.manifest import Manifest
from model.package import ModelPackage, Progress
from model.parity.inputs import CLASS_NAMES, FloatArray, VisionInput, image_inputs
from model.parity.measure import Reference, TextCase, VisionCase, counted, segmenting_features
from model.parity.recorded import RECORDED_TEXTS, Thumbnails, enlarged, gate_thumbnails
from model.runtime.base import Runtime, VisionOutput
from model.runtime.graph_runtime import parts_of
from model.segmentation import average_groups, cosine_map, segment, upsample_bilinear
from model.text import TEMPLATES, TextTokenizer, TokenBatch, fill
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
# Prompts of one step of the progress.
PROMPTS_AT_ONCE: Final = 32


def recorded_reference(
    encoder: Encoder,
    package: ModelPackage,
    *,
    dense: DenseReference | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Reference, Thumbnails]:
    """Run the encoder on what a package keeps for `model.parity.recorded`; see `run_model`.

    Returns:
        The outputs, with one case of images and one of texts, and the images.
    """
    manifest = package.manifest
    text = TextTokenizer.from_package(package).encode(RECORDED_TEXTS)
    thumbnails = gate_thumbnails()
    side = manifest.map_side(manifest.native_size) if dense else manifest.native_size
    images = enlarged(thumbnails, (side, side))
    reference = run_model(
        encoder, package, images=[images], texts=[text], dense=dense, progress=progress
    )
    return reference, thumbnails


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
    for pixels_B3HW, _ in image_inputs(manifest):
        if not _suits_heads(pixels_B3HW, manifest):
            continue
        output = runtime.encode_images(pixels_B3HW)
        cls_B1D = torch.from_numpy(output.cls1_BD[:, None])
        patches_BND = torch.from_numpy(output.patches_BND)
        patches_B1hwD = patches_BND.unflatten(1, output.grid_hw)[:, None]
        maps = {task: head(cls_B1D, patches_B1hwD).numpy() for task, head in heads.items()}
        cases.append(VisionCase(pixels_B3HW=pixels_B3HW, output=output, masks=(), dense=maps))
    return Reference(
        name=f"torch {torch.__version__}, float32, on embeddings of {runtime.name}",
        features=manifest.zero_shot.features,
        cpu_precision=manifest.cpu_precision,
        classes_KD=np.zeros((0, manifest.embed_dim), np.float32),
        vision=tuple(cases),
        text=(),
    )


@torch.no_grad()
def reference_vision(towers: Towers, parts: Iterable[FloatArray], patch_size: int) -> VisionOutput:
    """Vision embeddings of the reference for the parts [B, 3, H, W] of a batch."""
    outputs, height, width = [], 0, 0
    for pixels_B3HW in parts:
        outputs.append(towers.vision(torch.from_numpy(pixels_B3HW)))
        height, width = pixels_B3HW.shape[2:]
    grid_hw = (height // patch_size, width // patch_size)
    names = ("cls1_BD", "cls2_BD", "patches_BND", "values_BND")
    arrays: dict[str, Any] = {
        name: torch.cat(same).numpy()
        for name, same in zip(names, zip(*outputs, strict=True), strict=True)
    }
    return VisionOutput(**arrays, grid_hw=grid_hw)


@torch.no_grad()
def reference_text(towers: Towers, given: TokenBatch) -> FloatArray:
    """Text embeddings [B, D] of the reference."""
    output = towers.text(torch.from_numpy(given.token_ids_BL), torch.from_numpy(given.mask_BL))
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
    outputs = [
        dense(torch.from_numpy(part["pixel_values"]))
        for part in parts_of({"pixel_values": pixels_B3HW})
    ]
    return {
        task: np.concatenate([getattr(output, name).numpy() for output in outputs])
        for task, name in DENSE_FIELDS.items()
    }


def run_model(
    encoder: Encoder,
    package: ModelPackage,
    *,
    images: Sequence[VisionInput],
    texts: Sequence[TokenBatch],
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
        progress: Called with each part of the prompts and of the images.
    """
    manifest, towers = package.manifest, encoder.reference
    names = [fill(name, TEMPLATES[manifest.zero_shot.templates]) for name in CLASS_NAMES]
    sizes = tuple(map(len, names))
    prompts = TextTokenizer.from_package(package).encode(
        [text for group in names for text in group]
    )
    classes_KD = average_groups(_reference_prompts(towers, prompts, progress), sizes)
    vision = []
    for given, output in _reference_images(towers, images, manifest.patch_size, progress):
        items_BND = segmenting_features(output, manifest.zero_shot.features)
        suits = _suits_heads(given.pixels_B3HW, manifest)
        maps = dense(given.pixels_B3HW) if dense and suits else {}
        masks = [
            _mask(item_ND, classes_KD, output.grid_hw, size_hw)
            for item_ND, size_hw in zip(items_BND, given.mask_sizes, strict=True)
        ]
        vision.append(
            VisionCase(
                pixels_B3HW=given.pixels_B3HW,
                output=output,
                masks=tuple(masks),
                dense=maps,
            )
        )
    return Reference(
        name=f"{towers.name}, torch {torch.__version__}, float32",
        features=manifest.zero_shot.features,
        cpu_precision=manifest.cpu_precision,
        classes_KD=classes_KD,
        vision=tuple(vision),
        text=tuple(TextCase(given=one, output_BD=reference_text(towers, one)) for one in texts),
        prompts=prompts,
        prompts_of_class=sizes,
    )


def _reference_prompts(towers: Towers, prompts: TokenBatch, progress: Progress) -> FloatArray:
    starts = range(0, len(prompts.token_ids_BL), PROMPTS_AT_ONCE)
    parts = []
    for start in counted(starts, "computing prompts in torch", progress):
        rows = slice(start, start + PROMPTS_AT_ONCE)
        part = replace(
            prompts, token_ids_BL=prompts.token_ids_BL[rows], mask_BL=prompts.mask_BL[rows]
        )
        parts.append(reference_text(towers, part))
    return np.concatenate(parts)


def _reference_images(
    towers: Towers, images: Sequence[VisionInput], patch_size: int, progress: Progress
) -> Iterator[tuple[VisionInput, VisionOutput]]:
    """Outputs of each batch, which is computed in parts."""
    cut = [
        [part["pixel_values"] for part in parts_of({"pixel_values": given.pixels_B3HW})]
        for given in images
    ]
    every = counted(list(chain(*cut)), "computing images in torch", progress)
    for given, parts in zip(images, cut, strict=True):
        yield given, reference_vision(towers, islice(every, len(parts)), patch_size)


def _suits_heads(pixels_B3HW: FloatArray, manifest: Manifest) -> bool:
    """Whether these are images of a size that dense heads take."""
    return all(side % manifest.map_multiple == 0 for side in pixels_B3HW.shape[2:])


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
