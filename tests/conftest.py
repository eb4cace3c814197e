"""Fixtures for all test folders."""

import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from model.files import locked
from model.package import ModelPackage, open_package

if TYPE_CHECKING:
    from transformers import Tipsv2DptForDensePrediction, Tipsv2Model, Tipsv2Tokenizer

    from model.encoder import Tipsv2Encoder
    from model.export.graph_writer import PackageContent

# Slow folders: whole programs, containers, clusters, parity. Run by scripts/check.sh --all.
SLOW_FOLDERS = frozenset({"containers", "deploy", "end_to_end", "monitoring", "parity", "promises"})
# Folders whose slow tests measure memory or time, or fill both cores: nothing runs beside them.
ALONE_FOLDERS = frozenset({"benchmarks", "hostile", "promises"})
# Words that the tiny tokenizer has as one piece; other text becomes letters or bytes.
TINY_WORDS = "a the of in photo large small many red blue cat dog grass sky sea tree house ball"
TINY_SCORES = [
    {"task": "zero-shot segmentation", "split": "test", "row": row, "metric": "mIoU"}
    | {"value": value, "low": value - 1.5, "high": value + 1.5, "count": 500}
    for row, value in [("student", 4.25), ("random", 2.0)]
]
TINY_PROVENANCE = {
    "licence": "Apache-2.0",
    "variant": "tiny/14",
    "zero_shot": {"features": "values", "templates": "tcl"},
    "data": {"name": "none", "licences": ["CC0-1.0"]},
}


def pytest_configure(config: pytest.Config) -> None:
    """Randomise only the order of tests, and use one thread for matrix products.

    pytest-randomly would seed the numbers of each run differently. On a busy machine OpenBLAS's
    helper threads spin while they wait, which turns seconds into minutes; a plugin has loaded
    OpenBLAS already, so environment variables come too late for this process.
    """
    config.option.randomly_reset_seed = False
    threadpool_limits(1, user_api="blas")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for the processes that tests start
    # Hypothesis does so in CI by itself: time limits per example fail on a busy machine.
    patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("patient", settings(), **patient)
    settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow folders, and those beside which nothing may run."""
    root = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(root).parts[0]
        if folder in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
        if folder in ALONE_FOLDERS:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Reset random seeds and torch's settings before every test."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Folder of pyproject.toml."""
    return Path(__file__).resolve().parents[1]


Exported = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def exported(project_root: Path) -> Exported:
    """Exports into a folder by name, unless another process or session did so with this code."""
    code = [Path(__file__), *(project_root / "model").rglob("*.py")]
    code.append(project_root / "training/export.py")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(code)))
    for library in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino"):
        digest.update(f"{library} {version(library)}".encode())
    kept = project_root / ".pytest_cache" / "exports"
    folder = kept / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    # Exports of other code, which a running session may still use, are removed after a day.
    for other in kept.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > 24 * 3600:
                shutil.rmtree(other)

    def get(name: str, write: Callable[[Path], object]) -> Path:
        with locked(folder / f"{name}.lock"):
            if not (folder / name).exists():
                unfinished = folder / f"{name}.part"
                shutil.rmtree(unfinished, ignore_errors=True)
                write(unfinished)
                unfinished.rename(folder / name)
        return folder / name

    return get


@pytest.fixture(scope="session")
def tiny_model() -> "Tipsv2Model":
    """A random Tipsv2Model of width 32, native at 56 pixels; fixed seed, one thread.

    Its vision tower has a block for each tap of the dense heads.
    """
    import torch  # noqa: PLC0415 - tests without torch do not pay for its import
    from transformers import Tipsv2Config, Tipsv2Model  # noqa: PLC0415

    torch.set_num_threads(1)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Tipsv2Config(
        text_config={**tower, "vocab_size": len(tiny_vocabulary()[0]), "intermediate_size": 64},
        vision_config={**tower, "num_hidden_layers": 4, "image_size": 56, "mlp_ratio": 2},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Tipsv2Model(config)
        # Initial norms, biases and layer scales are ones and zeros, which would hide errors.
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(0.1 * torch.randn_like(parameter))
        # Values must differ from patches as much as after fewer blocks.
        attention = model.vision_model.encoder.layer[-1].attention
        for weight in (attention.v_proj.weight, attention.o_proj.weight):
            weight.mul_(1.5)
    model.eval()
    return model


@pytest.fixture(scope="session")
def tiny_dense(tiny_model: "Tipsv2Model") -> "Tipsv2DptForDensePrediction":
    """Random dense heads on the vision tower of `tiny_model`."""
    import torch  # noqa: PLC0415 - as above
    from transformers import Tipsv2DptConfig, Tipsv2DptForDensePrediction  # noqa: PLC0415

    torch.set_num_threads(1)
    backbone = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    taps = {"out_indices": [1, 2, 3, 4], "apply_layernorm": True, "reshape_hidden_states": False}
    config = Tipsv2DptConfig(
        backbone_config={
            "model_type": "tipsv2_vision_model",
            **(backbone | taps),
            "image_size": 56,
            "mlp_ratio": 2,
        },
        neck_hidden_sizes=[8, 12, 16, 24],
        fusion_hidden_size=16,
        num_depth_bins=32,
    )
    config.num_labels = 5
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        dense = Tipsv2DptForDensePrediction(config)
        for parameter in dense.parameters():
            # Initial heads multiply their input by thousands, which makes rounding differences
            # large.
            scale = 0.1 if parameter.ndim < 2 else 0.0
            parameter.add_(scale * torch.randn_like(parameter))
            if parameter.ndim == 4:
                parameter.mul_(0.3)
        dense.backbone.load_state_dict(tiny_model.vision_model.state_dict())
    dense.eval()
    return dense


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: "Tipsv2Model", tiny_tokenizer: "Tipsv2Tokenizer") -> "Tipsv2Encoder":
    """The tiny model with its tokenizer."""
    from model.encoder import Tipsv2Encoder  # noqa: PLC0415 - as above

    return Tipsv2Encoder(tiny_model, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_content(
    tiny_encoder: "Tipsv2Encoder",
    tiny_dense: "Tipsv2DptForDensePrediction",
) -> "PackageContent":
    """The tiny model with dense heads, for export in every precision."""
    from model.export.graph_writer import PackageContent, draft_manifest  # noqa: PLC0415 - as above

    return PackageContent(
        encoder=tiny_encoder,
        draft=draft_manifest(tiny_encoder, name="tiny", dense=tiny_dense),
        card="# Tiny\n",
        dense=tiny_dense,
        precisions=("fp16", "bf16", "int8"),
    )


@pytest.fixture(scope="session")
def tiny_graphs(
    tiny_content: "PackageContent",
    tiny_model: "Tipsv2Model",
    tiny_dense: "Tipsv2DptForDensePrediction",
    tiny_package: ModelPackage,
    exported: Exported,
) -> Path:
    """Folder with all graphs of `tiny_content`. Do not change it."""
    import onnx_ir  # noqa: PLC0415 - as above

    from model.export import graph_writer  # noqa: PLC0415
    from model.graphs import TEXT_FILE  # noqa: PLC0415

    models = [tiny_model, tiny_dense]
    attention = [model.config._attn_implementation for model in models]

    def write(folder: Path) -> None:
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            # Tracing a tower takes ten seconds of CPU, and the package has the same one.
            traced = onnx_ir.load(tiny_package.file(TEXT_FILE))
            patch.setattr(graph_writer, "trace_text", lambda _: traced)
            graph_writer.write_graphs(tiny_content, folder, lambda _: None)

    folder = exported("graphs", write)
    # Later tests share the models, so the export must leave them unchanged.
    assert [model.config._attn_implementation for model in models] == attention
    assert not any(model.training for model in models)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "Tipsv2Tokenizer":
    """A byte-fallback tokenizer that knows a few words."""
    from transformers import Tipsv2Tokenizer  # noqa: PLC0415 - as above

    vocab, merges = tiny_vocabulary()
    return Tipsv2Tokenizer(vocab=vocab, merges=merges)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_model: "Tipsv2Model",
    tiny_tokenizer: "Tipsv2Tokenizer",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A complete checkpoint as written by training. Do not change it: copy it first."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder / "scores.json").write_text(json.dumps(TINY_SCORES), encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(TINY_PROVENANCE), encoding="utf-8")
    (folder / "card.md").write_text("# Tiny\n\nRandom weights, for tests.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Path, exported: Exported) -> ModelPackage:
    """The tiny checkpoint, exported. Do not change it: copy it first."""
    from training.export import export_package  # noqa: PLC0415 - as above

    return open_package(
        exported("tiny", lambda folder: export_package(tiny_checkpoint, folder, name="tiny"))
    )


@pytest.fixture(scope="session")
def dense_package(
    tiny_encoder: "Tipsv2Encoder",
    tiny_dense: "Tipsv2DptForDensePrediction",
    tiny_graphs: Path,
    tiny_package: ModelPackage,
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelPackage:
    """The tiny package with dense heads. Do not change it."""
    from model.export.graph_writer import draft_manifest  # noqa: PLC0415 - as above
    from model.package import write_manifest  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("models") / "tiny-dense"
    shutil.copytree(tiny_package.path, folder)
    for part in ("vision", "depth", "normals", "segmentation"):
        shutil.copy(tiny_graphs / "onnx" / f"{part}_model.onnx", folder / "onnx")
    draft = draft_manifest(tiny_encoder, name=folder.name, dense=tiny_dense)
    return write_manifest(folder, draft)


def tiny_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces and merges: padding, unknown, all bytes, and `TINY_WORDS` built letter by letter."""
    pieces = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges: list[tuple[str, str]] = []
    for word in TINY_WORDS.split():
        grown = "\u2581"
        pieces += [grown, *word]
        for letter in word:
            if (grown, letter) not in merges:
                merges.append((grown, letter))
            grown += letter
            pieces.append(grown)
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, merges
