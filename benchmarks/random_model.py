"""Builds a model package of a released size with random weights, for cost measurements.

Run: python -m benchmarks.random_model FOLDER [--side 224]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from model.graphs import Precision
from model.package import ModelPackage, open_package
from model.parity.inputs import CLASS_NAMES, calibration_images, image_batch
from model.segmentation import l2_normalize
from model.text import TextTokenizer

if TYPE_CHECKING:
    from transformers import Tipsv2Config, Tipsv2Model

# An additional tiny size, created in seconds, to test scripts.
TINY: Final = "tiny"
PATCH: Final = 14
# Of the fit of texts.
STEPS: Final = 40
LEARNING_RATE: Final = 3e-3
PROVENANCE: Final = {
    "licence": "none",
    "zero_shot": {"features": "values", "templates": "none"},
    "data": {"name": "none", "licences": []},
}


def random_package(
    folder: Path, variant: str, side: int, precisions: Sequence[Precision] = ("fp32",)
) -> ModelPackage:
    """Return a package from the folder; creates it there in minutes if missing.

    Args:
        folder: Folder of packages.
        variant: A released size, or `TINY`.
        side: Its native size in pixels.
        precisions: Precisions of its graphs, in addition to float32.

    Raises:
        CalledProcessError: The export failed; the reason is on standard error.
    """
    further = [precision for precision in dict.fromkeys(precisions) if precision != "fp32"]
    output = folder / "-".join([variant, str(side), *further])
    if not output.exists():
        with tempfile.TemporaryDirectory() as checkpoint:
            _write_checkpoint(Path(checkpoint), variant, side)
            command = [sys.executable, "-m", "model", "convert", checkpoint, str(output)]
            command.append(f"--name={output.name}")
            subprocess.run(
                [*command, *(f"--precision={precision}" for precision in further)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
    return open_package(str(output))


def _write_checkpoint(folder: Path, variant: str, side: int) -> None:
    """Write a checkpoint like a training run, with the bundled student's tokenizer."""
    import torch  # noqa: PLC0415 - only where a model is made
    from transformers import Tipsv2Model  # noqa: PLC0415

    bundled = open_package("bundled-student").path
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(bundled / name, folder / name)
    torch.manual_seed(0)
    model = Tipsv2Model(_config(bundled, variant, side)).eval()
    plant_scales(model)
    fit_texts(model, folder / "tokenizer.json", side)
    model.save_pretrained(folder)
    (folder / "scores.json").write_text("[]", encoding="utf-8")
    provenance = {**PROVENANCE, "variant": variant}
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    (folder / "card.md").write_text("# Random weights\n", encoding="utf-8")


def plant_scales(model: "Tipsv2Model") -> None:
    """Set norms, biases, LayerScale and tokens to values other than 0 and 1, as after training.

    With initial values every block would add almost nothing and hide rounding errors.
    """
    import torch  # noqa: PLC0415 - only where a model is made

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "layer_scale" in name:
                parameter.copy_(0.3 + 0.2 * noise.abs())
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith(("cls_token", "register_tokens", "position_embeddings")):
                parameter.copy_(0.5 * noise)


def fit_texts(model: "Tipsv2Model", tokenizer_file: Path, side: int) -> None:
    """Fit the text tower's embeddings of the gate's class names to clusters of its own patches.

    With random texts the best two classes of nearly every patch are equal up to rounding, so that
    masks differ at random and do not represent a trained model. The model is changed in place; the
    clustered images have half its native side.
    """
    import torch  # noqa: PLC0415 - only where a model is made
    from torch.nn.functional import cosine_similarity  # noqa: PLC0415

    tokens = TextTokenizer(tokenizer_file).encode(CLASS_NAMES)
    token_ids_KL, mask_KL = torch.from_numpy(tokens.token_ids_BL), torch.from_numpy(tokens.mask_BL)
    small = max(side // 2 // PATCH, 4) * PATCH
    goal_KD = torch.from_numpy(_clusters(model, small, len(CLASS_NAMES)))
    tower = model.text_model
    weights = [tower.embeddings.token_embedding.weight, *tower.final_layer_norm.parameters()]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    for _ in range(STEPS):
        embeddings_KD = tower(input_ids=token_ids_KL, attention_mask=mask_KL).pooler_output
        cosine = cosine_similarity(embeddings_KD, goal_KD).mean()
        optimizer.zero_grad()
        (1 - cosine).backward()
        optimizer.step()
    model.requires_grad_(True).zero_grad()


def _clusters(model: "Tipsv2Model", side: int, num_classes: int) -> np.ndarray:
    """Return k-means directions [K, D] of value patches, relative to their common mean."""
    import torch  # noqa: PLC0415 - only where a model is made
    from scipy.cluster.vq import kmeans2  # type: ignore[import-untyped]  # noqa: PLC0415

    from model.features import vision_features  # noqa: PLC0415

    images = calibration_images()[:4]
    pixels_B3HW = torch.from_numpy(image_batch(images, (side, side), batch=4))
    with torch.no_grad():
        values_BND = vision_features(model, pixels_B3HW).values_BND.numpy()
    unit_ND = l2_normalize(values_BND.reshape(-1, values_BND.shape[-1]))
    unit_ND = l2_normalize(unit_ND - unit_ND.mean(axis=0))
    means_KD, _ = kmeans2(unit_ND, num_classes, minit="points", rng=0)
    return l2_normalize(means_KD)


def _config(bundled: Path, variant: str, side: int) -> "Tipsv2Config":
    from model.variants import VARIANTS, Variant  # noqa: PLC0415 - needs transformers

    tiny = Variant(
        name=TINY, width=32, heads=2, vision_layers=2, vision_mlp=64, text_layers=2, text_mlp=64
    )
    tokenizer = json.loads((bundled / "tokenizer.json").read_text(encoding="utf-8"))
    num_pieces = len(tokenizer["model"]["vocab"])
    chosen = tiny if variant == TINY else VARIANTS[variant]
    return chosen.build(vocab_size=num_pieces, native_size=side)


def main() -> None:
    """Create the package and print its folder for `--model`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of packages")
    parser.add_argument("--side", type=int, default=224, help="its native size in pixels")
    options = parser.parse_args()
    print(random_package(options.folder, "b14", options.side).path)


if __name__ == "__main__":
    main()
