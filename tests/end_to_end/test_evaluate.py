"""`tipserve evaluate` scores a package by the published protocol."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from model.class_names import ade20k_names
from model.manifest import PUBLISHED_ZERO_SHOT
from model.package import ModelPackage, write_manifest
from tests.promises.test_conversion import embed_texts, value_patches
from tipserve_cli.program import DONE, main

SIDE = 56  # the tiny model's native size; 448 in the notebook
if TYPE_CHECKING:
    from transformers import Tipsv2Model, Tipsv2Tokenizer


# Windows that end at the border, and upright images. Whole images are scaled to sides that are
# multiples of a patch, where the notebook rounds them up and the service to the nearest.
SIZES = {"slide": [(150, 61), (64, 99), (112, 168)], "whole": [(112, 168), (140, 112), (56, 56)]}


@pytest.fixture(scope="module")
def published(tiny_package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny package with the defaults that conversion writes for released weights."""
    folder = shutil.copytree(tiny_package.path, tmp_path_factory.mktemp("models") / "published")
    update: dict[str, Any] = {"zero_shot": PUBLISHED_ZERO_SHOT}
    write_manifest(folder, tiny_package.manifest.model_copy(update=update))
    return folder


def straight_miou(truths: list[Any], predicted: list[Any], num_classes: int) -> float:
    """The notebook's mIoU in percent: one confusion matrix, labels 0 and 255 left out."""
    table_KK = np.zeros((num_classes, num_classes))
    for truth_HW, called_HW in zip(truths, predicted, strict=True):
        counts = ~np.isin(truth_HW, (0, 255))
        np.add.at(table_KK, (truth_HW[counts] - 1, called_HW[counts] - 1), 1)
    both_K = table_KK.diagonal()
    union_K = table_KK.sum(axis=0) + table_KK.sum(axis=1) - both_K
    return 100 * float(np.mean(both_K[union_K > 0] / (union_K[union_K > 0] + 1e-10)))


def whole_mask(image: Image.Image, text_KD: Any, values: Callable[[Any], Any]) -> Any:
    """Labels from 1 as the notebook computes them in one pass."""
    import torch  # noqa: PLC0415 - heavy
    from torch.nn import functional as F  # noqa: PLC0415

    width, height = (int(SIDE * length / min(image.size)) for length in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    unit_ND = F.normalize(values(torch.from_numpy(scaled).permute(2, 0, 1)), dim=-1)
    cosine_Khw = (text_KD @ unit_ND.T).unflatten(1, (height // 14, width // 14))
    cosine_1KHW = F.interpolate(cosine_Khw[None], image.size[::-1], mode="bilinear")
    return cosine_1KHW[0].argmax(dim=0).numpy() + 1


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_ade20k_is_scored_as_in_the_notebook(
    mode: str,
    published: Path,
    tiny_model: "Tipsv2Model",
    tiny_tokenizer: "Tipsv2Tokenizer",
    photo: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    import torch  # noqa: PLC0415 - heavy

    from tests.parity.official import class_texts, notebook_mask  # noqa: PLC0415 - heavy

    names = ade20k_names()
    images, truths = tmp_path / "images" / "validation", tmp_path / "annotations" / "validation"
    for folder in (images, truths):
        folder.mkdir(parents=True)
    with torch.inference_mode():
        text_KD = class_texts(names, partial(embed_texts, tiny_model, tiny_tokenizer))
        values = partial(value_patches, tiny_model)
        wanted, masks = [], []
        for index, size in enumerate(SIZES[mode]):
            (images / f"{index}.jpg").write_bytes(photo(index, size))
            image = Image.open(images / f"{index}.jpg").convert("RGB")
            wanted.append(
                notebook_mask(image, text_KD, values, SIDE)
                if mode == "slide"
                else whole_mask(image, text_KD, values)
            )
            # A third of the pixels are right, so that the score is far from 0.
            rng = np.random.default_rng(index)
            mask_HW = rng.choice([0, 1, 150, 255], size[::-1], p=[0.3, 0.2, 0.2, 0.3])
            is_right_HW = rng.random(size[::-1]) < 1 / 3
            masks.append(np.where(is_right_HW, wanted[-1], mask_HW))
            Image.fromarray(masks[-1].astype(np.uint8)).save(truths / f"{index}.png")
    model = [f"--model={published}", "--runtime=torch", f"--mode={mode}"]
    output = tmp_path / "out"
    assert main(["evaluate", f"-o={output}", "--dataset", "ade20k", str(tmp_path), *model]) == DONE
    scores = json.loads((output / "report.json").read_text())["scores"]
    (found,) = [one["value"] for one in scores if (one["row"], one["metric"]) == ("model", "mIoU")]
    expected = straight_miou(masks, wanted, len(names))
    assert expected > 5
    assert found == pytest.approx(expected, abs=1e-4)
