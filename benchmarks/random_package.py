"""A package of B/14's size with random weights: what it says means nothing, what it costs is real.

Run: python -m benchmarks.random_package FOLDER
It needs the `train` extra, half a minute and 400 MB. The text tower has one layer, for it is the
vision tower that these benchmarks load.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import Tipsv2Config, Tipsv2Model

from training.export.package import export_package
from training.tokenizer import train_tokenizer

WORDS = ("a photo of", "dog cat tree house sea sky grass road car boat bird flower")
TOWER = {"hidden_size": 768, "num_attention_heads": 12}
PROVENANCE = {
    "licence": "Apache-2.0",
    "variant": "random B/14",
    "zero_shot": {"features": "values", "templates": "none"},
    "data": {"name": "none", "licences": ["none"]},
}


def random_model(vocab_size: int) -> Tipsv2Model:
    """Twelve layers of width 768 at 224 pixels, seeded."""
    config = Tipsv2Config(
        text_config={
            **TOWER,
            "num_hidden_layers": 1,
            "intermediate_size": 3072,
            "vocab_size": vocab_size,
        },
        vision_config={**TOWER, "num_hidden_layers": 12, "image_size": 224, "mlp_ratio": 4},
    )
    torch.manual_seed(0)
    model = Tipsv2Model(config)
    model.eval()
    return model


def write_package(folder: Path) -> Path:
    """Export a package, unless the folder holds one already.

    Returns:
        The folder.
    """
    if (folder / "tipserve.json").exists():
        return folder
    tokenizer = train_tokenizer(list(WORDS), 400)
    with tempfile.TemporaryDirectory() as checkpoint:
        random_model(len(tokenizer)).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        files = {"scores.json": [], "provenance.json": PROVENANCE}
        for name, content in files.items():
            (Path(checkpoint) / name).write_text(json.dumps(content), encoding="utf-8")
        (Path(checkpoint) / "card.md").write_text("# Random\n\nFor timing.\n", encoding="utf-8")
        export_package(Path(checkpoint), folder, name="random-b14")
    return folder


def main() -> None:
    """Write it where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(write_package(parser.parse_args().folder))


if __name__ == "__main__":
    main()
