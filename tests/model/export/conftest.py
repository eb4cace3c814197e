"""Tiny graphs of every part in every precision, made once for all tests of this folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import Tipsv2DptForDensePrediction, Tipsv2Model, Tipsv2Tokenizer

    from model.export.content import PackageContent


@pytest.fixture(scope="session")
def every_precision(
    tiny_model: "Tipsv2Model",
    tiny_tokenizer: "Tipsv2Tokenizer",
    tiny_dense: "Tipsv2DptForDensePrediction",
) -> "PackageContent":
    """The tiny model with its dense heads, to be written in all precisions."""
    from model.export.content import PackageContent  # noqa: PLC0415 - torch
    from model.export.sizes import draft_manifest  # noqa: PLC0415

    return PackageContent(
        model=tiny_model,
        tokenizer=tiny_tokenizer,
        draft=draft_manifest(tiny_model, name="tiny", has_dense_heads=True),
        render_card=lambda _: "# Tiny\n",
        dense=tiny_dense,
        precisions=("fp16", "bf16", "int8_weights", "int8"),
    )


@pytest.fixture(scope="session")
def graphs(every_precision: "PackageContent", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every graph. Do not change it."""
    from model.export.graph_writer import write_graphs  # noqa: PLC0415 - torch

    folder = tmp_path_factory.mktemp("graphs")
    write_graphs(every_precision, folder, lambda _: None)
    return folder
