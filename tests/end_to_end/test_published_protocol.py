"""Requests that set nothing segment a converted package as the released notebook does.

Shapes: K classes, T templates, D width, H W pixels, h w patch rows and columns.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from model.manifest import PUBLISHED_ZERO_SHOT
from model.package import ModelPackage, open_package, write_manifest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Tipsv2Model, Tipsv2Tokenizer

SIDE = 56  # the tiny model's native size; 448 in the notebook
STRIDE = 42  # 336 in the notebook
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)
# So many that the random model finds several of them.
CLASSES = [*"abcdefghijklmnopqrstuvwxyz", "cat", "dog", "grass", "sky", "house", "tree", "sea"]
# Windows that end at the border, an upright image, and a size that is no multiple of a patch.
SIZES = [(150, 61), (64, 99), (300, 200)]


@pytest.fixture(scope="module")
def converted(tiny_package: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """The tiny package with the defaults that conversion writes."""
    folder = shutil.copytree(tiny_package.path, tmp_path_factory.mktemp("models") / "converted")
    update: dict[str, Any] = {"name": "converted", "zero_shot": PUBLISHED_ZERO_SHOT}
    write_manifest(folder, tiny_package.manifest.model_copy(update=update))
    return open_package(folder)


def class_texts(model: "Tipsv2Model", tokenizer: "Tipsv2Tokenizer") -> "Tensor":
    """Unit embeddings [K, D]: of each prompt, averaged, and normalised again."""
    import torch  # noqa: PLC0415 - heavy
    from torch.nn import functional as F  # noqa: PLC0415

    rows = []
    for name in CLASSES:
        prompts = [template.format(name).lower() for template in TEMPLATES]
        given = tokenizer(prompts, padding=True, return_tensors="pt")
        text_TD = model.text_model(**given).pooler_output
        rows.append(F.normalize(F.normalize(text_TD, dim=-1).mean(dim=0), dim=-1))
    return torch.stack(rows)


def cosines(model: "Tipsv2Model", window_3HW: "Tensor", text_KD: "Tensor") -> "Tensor":
    """Cosines [K, h, w] of value-path patches: the last block without its attention weights."""
    from torch.nn import functional as F  # noqa: PLC0415

    tower: Any = model.vision_model
    before_1TD = tower(window_3HW[None], output_hidden_states=True).hidden_states[-2]
    last = tower.encoder.layer[-1]
    value_1TD = last.attention.v_proj(last.norm1(before_1TD))
    values_1TD = before_1TD + last.layer_scale1(last.attention.o_proj(value_1TD))
    values_1TD = values_1TD + last.layer_scale2(last.mlp(last.norm2(values_1TD)))
    patches_ND = F.normalize(tower.layernorm(values_1TD)[0, 2:], dim=-1)
    rows, columns = (side // 14 for side in window_3HW.shape[1:])
    return (text_KD @ patches_ND.T).reshape(-1, rows, columns)


def notebook_mask(model: "Tipsv2Model", text_KD: "Tensor", image: Image.Image) -> Any:
    """Labels from 1: bicubic short side, windows, softmax without temperature, mean, largest."""
    import torch  # noqa: PLC0415 - heavy
    from torch.nn import functional as F  # noqa: PLC0415

    short = min(image.size)
    width, height = (int(SIDE * side / short) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    pixels_3HW = torch.from_numpy(scaled).permute(2, 0, 1)
    sum_KHW, hits_HW = torch.zeros(len(text_KD), height, width), torch.zeros(height, width)
    for row in range(max(height - SIDE + STRIDE - 1, 0) // STRIDE + 1):
        for column in range(max(width - SIDE + STRIDE - 1, 0) // STRIDE + 1):
            bottom = min(row * STRIDE + SIDE, height)
            right = min(column * STRIDE + SIDE, width)
            part = np.s_[max(bottom - SIDE, 0) : bottom, max(right - SIDE, 0) : right]
            window_3HW = pixels_3HW[:, *part]
            cosine_1Khw = cosines(model, window_3HW, text_KD)[None]
            wide_KHW = F.interpolate(cosine_1Khw, window_3HW.shape[1:], mode="bilinear")[0]
            sum_KHW[:, *part] += wide_KHW.softmax(dim=0)
            hits_HW[part] += 1
    size_hw = image.size[::-1]
    mean_1KHW = F.interpolate((sum_KHW / hits_HW)[None], size_hw, mode="bilinear")
    return mean_1KHW[0].argmax(dim=0).numpy() + 1


def test_every_way_in_follows_the_published_protocol(
    run_service: Callable[..., Any],
    converted: ModelPackage,
    tiny_model: "Tipsv2Model",
    tiny_tokenizer: "Tipsv2Tokenizer",
    photo: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    import torch  # noqa: PLC0415 - heavy

    images = [photo(seed, size, "PNG") for seed, size in enumerate(SIZES)]
    with torch.inference_mode():
        text_KD = class_texts(tiny_model, tiny_tokenizer)
        wanted = [notebook_mask(tiny_model, text_KD, Image.open(BytesIO(i))) for i in images]
    found = [len(np.unique(mask)) for mask in wanted]
    assert min(found) > 1, f"masks of one class prove little: {found}"
    asked = {"images": images, "classes": [{"name": name} for name in CLASSES]}
    with run_service(packages=(converted,)) as service:
        ways = {
            "rest": service.over_rest("segment_images", asked).arrays,
            "grpc": service.over_grpc("segment_images", asked).arrays,
        }
        fast = service.over_rest("segment_images", {**asked, "mode": "whole"}).arrays
    ways["command"] = {}
    for index, image in enumerate(images):
        file, output = tmp_path / f"{index}.png", tmp_path / f"{index}.npy"
        file.write_bytes(image)
        command = ["segment", str(file), f"--classes={','.join(CLASSES)}", f"-o={output}"]
        command = [sys.executable, "-m", "service.commands", *command, f"--model={converted.path}"]
        subprocess.run(command, check=True, capture_output=True)
        ways["command"][f"{index}.labels"] = np.load(output)
    for name, arrays in ways.items():
        for index, mask_HW in enumerate(wanted):
            agreement = (arrays[f"{index}.labels"] == mask_HW).mean()
            assert agreement > 0.99, (name, index)
    assert (fast["0.labels"] != wanted[0]).mean() > 0.01, "the fast mode is another protocol"
