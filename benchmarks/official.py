"""Compares served models with the official arithmetic on the same random weights.

Claim: through REST and gRPC, a converted checkpoint computes what the release's code computes:
features and texts up to rounding, at least 99 % of the pixels of the notebook's masks with the
defaults, depth within 1e-4 m; embeddings and masks are equal with and without dense heads.

The weights are written in the release's layouts: the pair of .npz files, and Scenic zips. Both are
converted by `python -m model convert`, and served in float32. The official arithmetic is that of
the tests (`tests/parity/official.py`, `tests/model/checkpoints/scenic_decoder.py`).

Run: PYTHONPATH=clients/python python -m benchmarks.official FOLDER [--layers 12] [--side 448]
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

from benchmarks.random_model import fit_texts, plant_scales
from model.graphs import DENSE_TASKS
from model.package import open_package
from model.parity.inputs import CLASS_NAMES, gate_images
from model.text import TextTokenizer
from model.variants import VARIANTS
from tests.model.checkpoints.official_layout import write_pair
from tests.model.checkpoints.scenic_decoder import decode, depth_in_metres
from tests.model.checkpoints.scenic_layout import write_scenic
from tests.parity.official import arrays_of, class_texts, notebook_mask, taps, text, vision
from tests.processes.service_process import running_service
from tipserve_client import Client

B14: Final = VARIANTS["b14"]
# Sizes of the released heads.
FUSION, NUM_BINS, NUM_LABELS = 256, 256, 150
BASE, DENSE = "b14", "b14-dpt"
OUTPUTS: Final = ("cls1", "cls2", "patches", "values")
TEXTS: Final = ("a dog", "Two brown DOGS look out of a window", "grass " * 80)
# 6 megapixels, as a camera writes them: `jpeg_decode=fast` reduces it while it is decoded.
PHOTO_SIZE: Final = (3000, 2000)
# On a busy machine a B/14 with heads takes minutes to start.
START_LIMIT_S: Final = 1800.0
LIMIT_S: Final = 600.0
Found = dict[str, np.ndarray]


def write_checkpoints(folder: Path, num_layers: int, side: int) -> None:
    """Write random weights as the release's files, in `b14` and `b14-dpt`."""
    base = folder / BASE
    base.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(open_package("bundled-student").path / name, base / name)
    vocabulary = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    shape = replace(B14, vision_layers=num_layers, text_layers=num_layers)
    torch.manual_seed(0)
    model = Tipsv2Model(shape.build(vocab_size=len(vocabulary), native_size=side)).eval()
    plant_scales(model)
    # Otherwise the best two classes of nearly every pixel would be equal up to rounding.
    fit_texts(model, base / "tokenizer.json", side)
    write_pair(model, base)
    dense = random_heads(model)
    for task in DENSE_TASKS:
        write_scenic(dense, folder / DENSE, task)


def random_heads(model: Tipsv2Model) -> Tipsv2DptForDensePrediction:
    """Make heads of the released size, with weights that keep the scale of what they read."""
    tower = model.vision_model.config.to_dict()
    for name in ("out_features", "out_indices", "stage_names"):
        tower.pop(name, None)
    blocks = tap_numbers(tower["num_hidden_layers"])
    read = {"out_indices": blocks, "apply_layernorm": True, "reshape_hidden_states": False}
    width = tower["hidden_size"]
    labels: dict[str, Any] = {"num_labels": NUM_LABELS}
    config = Tipsv2DptConfig(
        backbone_config=Tipsv2VisionConfig.from_dict(tower | read),
        neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
        fusion_hidden_size=FUSION,
        num_depth_bins=NUM_BINS,
        depth_decoder_activation="linear",
        **labels,
    )
    torch.manual_seed(1)
    dense = Tipsv2DptForDensePrediction(config)
    dense.eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn_like(parameter))
    return dense


def tap_numbers(num_layers: int) -> list[int]:
    """The blocks that heads read, from 1."""
    return [num_layers * quarter // 4 for quarter in (1, 2, 3, 4)]


def convert(folder: Path, source: Path, name: str) -> Path:
    """Convert a source, unless that was done before."""
    package = folder / "packages" / name
    if not package.exists():
        command = [
            sys.executable,
            "-m",
            "model",
            "convert",
            str(source),
            str(package),
            f"--name={name}",
        ]
        subprocess.run(command, check=True)
    return package


def as_png(image: Image.Image) -> bytes:
    """The image without a loss."""
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def example_images(side: int) -> tuple[Image.Image, dict[str, bytes]]:
    """An image as the model sees it, and images to segment by what they are called in the table."""
    shown = [Image.fromarray(pixels_HW3) for pixels_HW3 in gate_images()]
    stream = BytesIO()
    shown[0].resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    masks = {f"{image.width} x {image.height} PNG": as_png(image) for image in shown[2:5]}
    masks["3000 x 2000 JPEG, jpeg_decode=fast"] = stream.getvalue()
    return shown[2].resize((side, side), Image.Resampling.BICUBIC), masks


@torch.no_grad()
def official(
    folder: Path, square: Image.Image, masks: Mapping[str, bytes], side: int, *, has_heads: bool
) -> Found:
    """What the official arithmetic computes from the files."""
    image_arrays, text_arrays = (
        arrays_of(next((folder / BASE).glob(f"*_{tower}.npz"))) for tower in ("vision", "text")
    )
    tokenizer = TextTokenizer(folder / BASE / "tokenizer.json")

    def embed(texts: list[str]) -> Tensor:
        tokens = tokenizer.encode(texts)
        ids_BL, mask_BL = torch.from_numpy(tokens.token_ids_BL), torch.from_numpy(tokens.mask_BL)
        return text(text_arrays, ids_BL, mask_BL, B14.heads)

    def values(window_3HW: Tensor) -> Tensor:
        return vision(image_arrays, window_3HW[None], B14.heads)[1][0]

    pixels_HW3 = torch.from_numpy(np.asarray(square, np.float32) / 255)
    pixels_13HW = pixels_HW3.permute(2, 0, 1)[None]
    tokens_1TD, values_1ND = vision(image_arrays, pixels_13HW, B14.heads)
    found = {
        "cls1": tokens_1TD[0, 0],
        "cls2": tokens_1TD[0, 1],
        "patches": tokens_1TD[0, 2:],
        "values": values_1ND[0],
        "texts": embed(list(TEXTS)),
    }
    if has_heads:
        found |= official_maps(folder / DENSE, image_arrays, pixels_13HW)
    text_KD = class_texts(CLASS_NAMES, embed)
    labels = {
        name: notebook_mask(Image.open(BytesIO(content)), text_KD, values, side)
        for name, content in masks.items()
    }
    return {name: tensor.numpy() for name, tensor in found.items()} | labels


def official_maps(
    folder: Path, arrays: dict[str, Tensor], pixels_13HW: Tensor
) -> dict[str, Tensor]:
    """Depth [H, W] in metres and normals [H, W, 3] in the size of the image."""
    num_layers = sum(name.endswith(".norm1.weight") for name in arrays)
    stages = taps(arrays, pixels_13HW, B14.heads, tap_numbers(num_layers))
    size_hw = pixels_13HW.shape[2:]
    heads = {}
    for task in ("depth", "normals"):
        with np.load(next(folder.glob(f"*_{task}_dpt.zip"))) as stored:
            heads[task] = {name: stored[name] for name in stored.files}
    depth_1HW = depth_in_metres(heads["depth"], stages, activation=False)
    depth_11HW = F.interpolate(depth_1HW[None], size_hw, mode="bilinear")
    normals_1HW3 = decode(heads["normals"], "normals", stages, activation=False)
    unit_13HW = F.normalize(normals_1HW3.permute(0, 3, 1, 2), dim=1)
    unit_13HW = F.normalize(F.interpolate(unit_13HW, size_hw, mode="bicubic"), dim=1)
    return {"depth": depth_11HW[0, 0], "normals": unit_13HW[0].permute(1, 2, 0)}


def served(client: Client, model: str, square: Image.Image, masks: Mapping[str, bytes]) -> Found:
    """The same through the service, by its defaults."""
    png = as_png(square)
    (image,) = client.embed_images(png, model=model, outputs=OUTPUTS, normalize=False)
    found: Found = {}
    for name in OUTPUTS:
        array = getattr(image, name)
        found[name] = array.reshape(-1, array.shape[-1]) if array.ndim == 3 else array
    found["texts"] = client.embed_texts(TEXTS, model=model, normalize=False)
    for name, content in masks.items():
        (mask,) = client.segment(content, CLASS_NAMES, model=model)
        found[name] = mask.labels
    if model == DENSE:
        (found["depth"],) = client.depth(png, model=model)
        (found["normals"],) = client.normals(png, model=model)
    return found


def equality(array: np.ndarray, other: np.ndarray) -> str:
    """How many elements differ."""
    num_different = np.count_nonzero(array != other)
    return f"{num_different} of {array.size} differ" if num_different else "equal"


def print_table(wanted: Found, rest: Found, grpc: Found, base: Found) -> None:
    """Print a row for each output, as a table of Markdown."""
    print("| output | against the official arithmetic | REST and gRPC | with and without heads |")
    print("| --- | --- | --- | --- |")
    for name, expected in wanted.items():
        array = rest[name]
        if name == "depth":
            distance = f"{np.abs(array - expected).max():.1e} m of {np.ptp(expected):.2f} m"
        elif name == "normals":
            # By the chord: the cosine of a small angle is 1 in float32.
            chord = np.linalg.norm(array - expected, axis=-1).max()
            distance = f"{np.degrees(2 * np.arcsin(chord / 2)):.1e} degrees"
        elif expected.dtype.kind == "i":
            same, count = (array == expected).mean(), len(np.unique(expected))
            distance = f"{100 * same:.2f} % of the pixels, {count} classes"
        else:
            distance = f"{np.abs(array - expected).max():.1e} (deviation {expected.std():.2f})"
        transports = equality(array, grpc[name])
        heads = equality(array, base[name]) if name in base else ""
        print(f"| {name} | {distance} | {transports} | {heads} |")


def main() -> None:
    """Write the weights, convert and serve them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="keeps weights and packages for the next run")
    parser.add_argument("--layers", type=int, default=B14.vision_layers, help="of both towers")
    parser.add_argument("--side", type=int, default=448, help="native size in pixels")
    parser.add_argument("--without-heads", action="store_true", help="the towers only")
    options = parser.parse_args()
    names = [BASE] if options.without_heads else [BASE, DENSE]
    folder = options.folder / f"{options.layers}-{options.side}"
    if not folder.exists():
        write_checkpoints(folder, options.layers, options.side)
    # The folder of the heads is converted with the model beside it.
    packages = [convert(folder, folder / name, name) for name in names]
    square, masks = example_images(options.side)
    wanted = official(folder, square, masks, options.side, has_heads=DENSE in names)
    models = ",".join(map(str, packages))
    arguments = [f"--model={models}", "--precision=fp32", "--lanes=1"]
    arguments.append(f"--request-timeout-s={LIMIT_S}")
    with running_service(*arguments, start_limit_s=START_LIMIT_S) as service:
        found: dict[str, dict[str, Found]] = {}
        for url in (service.http_url, f"grpc://127.0.0.1:{service.grpc_port}"):
            with Client(url, timeout_s=LIMIT_S) as client:
                found[url] = {name: served(client, name, square, masks) for name in names}
    rest, grpc = found.values()
    print_table(wanted, rest[names[-1]], grpc[names[-1]], rest[BASE] if DENSE in names else {})


if __name__ == "__main__":
    main()
