"""An encoder that is no Tipsv2Model, from its weights to answers of the service.

A convolution with patches of 32 pixels, which takes multiples of 64, and a mean of words,
both with random weights of a fixed seed.
"""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from model import encoder as seam
from model.conversion.convert import ConversionRequest, convert
from model.conversion.source import FolderSource
from model.encoder import Encoder, EncoderError, load_encoder
from model.export import package_writer
from model.export.exact import round_weights
from model.export.graph_writer import PackageContent
from model.graphs import TEXT_FILE, VISION_FILE
from model.package import ModelPackage, open_package
from model.preprocess import to_planes
from model.runtime.base import UnusableRuntimeError
from model.runtime.load import load_runtime
from model.text import TextTokenizer
from tests.conftest import TINY_PROVENANCE, TINY_SCORES, TINY_WORDS, Exported
from tests.end_to_end.client import over_both, over_rest
from tests.end_to_end.conftest import RunService
from tests.processes.server import photo
from tipserve_client import InvalidRequest
from training.export import export_package

KIND = "test-one-conv-words"
WIDTH = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


class Trunk(nn.Module):
    """A convolution whose cells are patches, then a head for each output."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 32, stride=32)
        self.heads = nn.ModuleList(nn.Linear(48, WIDTH) for _ in range(4))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells_BNC = self.patches(pixel_values - 0.5).relu().flatten(2).transpose(1, 2)
        mean_BC = cells_BNC.mean(dim=1)
        cls1, cls2, patches, values = self.heads
        return cls1(mean_BC), cls2(mean_BC), patches(cells_BNC), values(cells_BNC)


class Words(nn.Module):
    """The mean of the embeddings of words, after a layer."""

    def __init__(self, num_pieces: int) -> None:
        super().__init__()
        self.pieces = nn.Embedding(num_pieces, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden_BLD = self.layer(self.pieces(input_ids)).relu()
        weight_BL1 = attention_mask[..., None].to(hidden_BLD.dtype)
        mean_BD: Tensor = (hidden_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1).clamp(min=1)
        return mean_BD


class ConvWords(Encoder):
    """Both networks as an encoder."""

    patch_size, size_multiple, native_size = 32, 64, 128
    embed_dim, max_text_tokens, temperature, variant = WIDTH, 12, 0.05, "one-conv-words"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.vision, self.text = Trunk().eval(), Words(tokenizer.vocab_size).eval()
        self.towers = nn.ModuleDict({"vision": self.vision, "text": self.text})

    def save(self, folder: Path) -> None:
        save_file(self.towers.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": KIND}), encoding="utf-8")
        self.tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "ConvWords":
        encoder = cls(TextTokenizer(folder / "tokenizer.json", max_tokens=cls.max_text_tokens))
        encoder.towers.load_state_dict(load_file(folder / "model.safetensors"))
        return encoder


def words() -> TextTokenizer:
    """Whole words, as numbers."""
    pieces = [*SPECIAL, *TINY_WORDS.split()]
    built = Tokenizer(models.WordLevel({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.add_special_tokens(SPECIAL)
    return TextTokenizer(built, max_tokens=ConvWords.max_text_tokens)


@pytest.fixture(scope="module")
def encoder() -> ConvWords:
    """The encoder with weights that fp16 and int8 hold exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = ConvWords(words())
    round_weights(built.vision, "fp16")
    round_weights(built.text, "int8_tables")
    return built


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """The loader of this encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(seam.LOADERS, KIND, ConvWords.load)
        yield


@pytest.fixture(scope="module")
def checkpoint(encoder: ConvWords, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training job would leave."""
    folder = tmp_path_factory.mktemp("checkpoint")
    encoder.save(folder)
    provenance: dict[str, Any] = {**TINY_PROVENANCE, "variant": "one-conv-words/32"}
    (folder / "scores.json").write_text(json.dumps(TINY_SCORES), encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    (folder / "card.md").write_text("# Conv and words\n\nRandom weights.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def package(checkpoint: Path, exported: Exported) -> ModelPackage:
    """The exported package; the gate has compared its graphs with torch."""
    name = "one-conv-words"
    return open_package(exported(name, lambda to: export_package(checkpoint, to, name=name)))


def test_the_gate_proves_every_graph_in_float32(package: ModelPackage) -> None:
    proven = [entry for entry in package.manifest.parity if entry.precision == "fp32"]
    assert {(entry.file, entry.runtime) for entry in proven} == {
        (file, runtime) for file in (VISION_FILE, TEXT_FILE) for runtime in ("onnx", "openvino")
    }
    for entry in proven:
        assert entry.passed
        assert entry.reference.startswith("ConvWords, torch")
    card = (package.path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Conv and words")


def test_images_and_texts_are_embedded_as_by_the_encoder(
    run_service: RunService, package: ModelPackage, encoder: ConvWords
) -> None:
    image, asked = photo(1, (192, 128), "PNG"), ["a red cat", "house"]
    names = ["cls1", "cls2", "patches", "values"]
    raw = {"images": [image], "outputs": names, "fit": "aspect", "normalize": False}
    texts = {"texts": asked, "templates": "none", "normalize": False}
    tokens = encoder.tokenizer.encode(asked)
    with Image.open(BytesIO(image)) as opened, torch.no_grad():
        outputs = encoder.vision(torch.from_numpy(to_planes(opened.convert("RGB"))[None]))
        wanted = {f"0.{name}": tensor[0] for name, tensor in zip(names, outputs, strict=True)}
        ids, mask = map(torch.from_numpy, (tokens.token_ids_BL, tokens.mask_BL))
        wanted |= {f"{n}.embedding": row for n, row in enumerate(encoder.text(ids, mask))}
    with run_service("--precision=fp32", packages=(package,)) as server:
        images = over_both(server, "embed_images", raw)
        found = {**images, **over_both(server, "embed_texts", texts)}
        with pytest.raises(InvalidRequest, match=r"resolution.*64"):
            over_rest(server, "embed_images", {"images": [image], "resolution": 96})
    assert found["0.patches"].shape == (4, 6, WIDTH)
    for name, tensor in wanted.items():
        np.testing.assert_allclose(
            found[name].ravel(), tensor.numpy().ravel(), rtol=0, atol=1e-5, err_msg=name
        )


def test_an_unknown_encoder_is_explained(package: ModelPackage) -> None:
    assert load_encoder(package.path).variant == "one-conv-words"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(seam.LOADERS, KIND)
        with pytest.raises(EncoderError, match="of type 'test-one-conv-words', which torch cannot"):
            load_encoder(package.path)
        with pytest.raises(UnusableRuntimeError, match="run with onnx, openvino and tensorrt"):
            load_runtime(package, runtime="torch")
        load_runtime(package, runtime="onnx").close()


@pytest.mark.parametrize("is_package", [True, False])
def test_such_packages_and_folders_are_converted(
    package: ModelPackage,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_package: bool,
) -> None:
    written: list[PackageContent] = []
    monkeypatch.setattr(
        package_writer, "write_package", lambda content, *_, **__: written.append(content)
    )
    folder = package.path if is_package else checkpoint
    request = ConversionRequest(base=FolderSource(folder), precisions=("fp32", "fp16"))
    convert(request, tmp_path / "more", lambda _: None)
    (content,) = written
    assert isinstance(content.encoder, ConvWords)
    assert content.precisions == ("fp32", "fp16")
    assert content.draft.variant == ("one-conv-words/32" if is_package else "one-conv-words")
    assert content.draft.zero_shot.templates == ("tcl" if is_package else "none")
