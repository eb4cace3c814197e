"""Requests that set nothing segment a converted package as the released notebook does.

Shapes: K classes, P prompts, D width, N patches, H W pixels.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
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


def embed_texts(model: "Tipsv2Model", tokenizer: "Tipsv2Tokenizer", texts: list[str]) -> "Tensor":
    """Embeddings [P, D] by transformers."""
    given = tokenizer([text.lower() for text in texts], padding=True, return_tensors="pt")
    embeddings_PD: Tensor = model.text_model(**given).pooler_output
    return embeddings_PD


def value_patches(model: "Tipsv2Model", window_3HW: "Tensor") -> "Tensor":
    """Value-path patches [N, D]: the last block without its attention weights."""
    tower: Any = model.vision_model
    before_1TD = tower(window_3HW[None], output_hidden_states=True).hidden_states[-2]
    last = tower.encoder.layer[-1]
    value_1TD = last.attention.v_proj(last.norm1(before_1TD))
    values_1TD = before_1TD + last.layer_scale1(last.attention.o_proj(value_1TD))
    values_1TD = values_1TD + last.layer_scale2(last.mlp(last.norm2(values_1TD)))
    patches_ND: Tensor = tower.layernorm(values_1TD)[0, 2:]
    return patches_ND


def test_every_way_in_follows_the_published_protocol(
    run_service: Callable[..., Any],
    converted: ModelPackage,
    tiny_model: "Tipsv2Model",
    tiny_tokenizer: "Tipsv2Tokenizer",
    photo: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    import torch  # noqa: PLC0415 - heavy

    from tests.parity.official import class_texts, notebook_mask  # noqa: PLC0415 - heavy

    images = [photo(seed, size, "PNG") for seed, size in enumerate(SIZES)]
    with torch.inference_mode():
        text_KD = class_texts(CLASSES, partial(embed_texts, tiny_model, tiny_tokenizer))
        values = partial(value_patches, tiny_model)
        wanted = [notebook_mask(Image.open(BytesIO(i)), text_KD, values, SIDE) for i in images]
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
        command = [sys.executable, "-m", "tipserve_cli", *command, f"--model={converted.path}"]
        subprocess.run(command, check=True, capture_output=True)
        ways["command"][f"{index}.labels"] = np.load(output)
    for name, arrays in ways.items():
        for index, mask_HW in enumerate(wanted):
            agreement = (arrays[f"{index}.labels"] == mask_HW).mean()
            assert agreement > 0.99, (name, index)
    assert (fast["0.labels"] != wanted[0]).mean() > 0.01, "the fast mode is another protocol"
