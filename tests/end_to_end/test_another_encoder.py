"""An encoder that is no Tipsv2Model, from its weights to answers of the service.

A convolutional trunk with patches of 32 pixels, which takes multiples of 64, and a small BERT with
WordPiece texts. Both have random weights of a fixed seed.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from model import encoder as seam
from model.conversion import convert as conversion
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
from tipserve_client import InvalidRequest
from training.export.package import export_package

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

KIND = "test-conv-bert"
WIDTH = 32
HEADS = 2
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


class Trunk(nn.Module):
    """Five halvings of the image, then a head for each output."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 24, 32, 48]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU6())
                for a, b in pairwise(widths)
            )
        )
        self.heads = nn.ModuleList(nn.Linear(48, WIDTH) for _ in range(4))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells_BNC = self.layers(pixel_values - 0.5).flatten(2).transpose(1, 2)
        mean_BC = cells_BNC.mean(dim=1)
        cls1, cls2, patches, values = self.heads
        return cls1(mean_BC), cls2(mean_BC), patches(cells_BNC), values(cells_BNC)


class Bert(nn.Module):
    """Two blocks over word pieces; the mean of the tokens."""

    def __init__(self, num_pieces: int, max_tokens: int) -> None:
        super().__init__()
        self.pieces = nn.Embedding(num_pieces, WIDTH)
        self.positions = nn.Embedding(max_tokens, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        order_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_BLD = self.norm(self.pieces(input_ids) + self.positions(order_L))
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, attention_mask)
        weight_BL1 = attention_mask[..., None].to(hidden_BLD.dtype)
        mean_BD: Tensor = (hidden_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1).clamp(min=1)
        return mean_BD


class Block(nn.Module):
    """Attention and MLP, normalised after each as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.joint, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        parts = self.joint(hidden_BLD).unflatten(-1, (3, HEADS, WIDTH // HEADS)).unbind(2)
        query, key, value = (part_BLAE.transpose(1, 2) for part_BLAE in parts)
        score_BALL = query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        score_BALL = score_BALL + (1 - mask_BL[:, None, None, :].to(hidden_BLD.dtype)) * -1e4
        mixed_BLD = (score_BALL.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        hidden_BLD = self.norm1(hidden_BLD + self.out(mixed_BLD))
        output_BLD: Tensor = self.norm2(hidden_BLD + self.narrow(self.wide(hidden_BLD).relu()))
        return output_BLD


class ConvBert(Encoder):
    """Both networks as an encoder."""

    patch_size, size_multiple, native_size = 32, 64, 128
    embed_dim, max_text_tokens, temperature, variant = WIDTH, 12, 0.05, "conv-bert"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._vision = Trunk().eval()
        self._text = Bert(tokenizer.vocab_size, self.max_text_tokens).eval()

    @property
    def vision(self) -> nn.Module:
        return self._vision

    @property
    def text(self) -> nn.Module:
        return self._text

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._tokenizer

    def save(self, folder: Path) -> None:
        towers = nn.ModuleDict({"vision": self._vision, "text": self._text})
        save_file(towers.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": KIND}), encoding="utf-8")
        self._tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "ConvBert":
        encoder = cls(TextTokenizer(folder / "tokenizer.json", max_tokens=cls.max_text_tokens))
        towers = nn.ModuleDict({"vision": encoder.vision, "text": encoder.text})
        towers.load_state_dict(load_file(folder / "model.safetensors"))
        return encoder


def word_pieces() -> TextTokenizer:
    """Whole words, letters, and BERT's rules."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789[].,"
    pieces = [*SPECIAL, *TINY_WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]
    numbers = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    built = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.add_special_tokens(SPECIAL)
    return TextTokenizer(built, max_tokens=ConvBert.max_text_tokens)


@pytest.fixture(scope="module")
def encoder() -> ConvBert:
    """The encoder with weights that fp16 and int8 hold exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = ConvBert(word_pieces())
    round_weights(built.vision, "fp16")
    round_weights(built.text, "int8_tables")
    return built


@pytest.fixture(scope="module")
def known() -> Iterator[None]:
    """The loader of this encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(seam.LOADERS, KIND, ConvBert.load)
        yield


@pytest.fixture(scope="module")
def checkpoint(encoder: ConvBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training job would leave."""
    folder = tmp_path_factory.mktemp("checkpoint")
    encoder.save(folder)
    provenance: dict[str, Any] = {**TINY_PROVENANCE, "variant": "conv-bert/32"}
    (folder / "scores.json").write_text(json.dumps(TINY_SCORES), encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    (folder / "card.md").write_text("# Conv and BERT\n\nRandom weights.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def package(checkpoint: Path, known: None, exported: Exported) -> ModelPackage:
    """The exported package; the gate has compared its graphs with torch."""
    return open_package(
        exported("conv-bert", lambda folder: export_package(checkpoint, folder, name="conv-bert"))
    )


@pytest.fixture(scope="module")
def served(run_service: Callable[..., Any], package: ModelPackage) -> Iterator["Service"]:
    with run_service("--precision=fp32", packages=(package,)) as running:
        yield running


def test_the_gate_proves_every_graph_in_float32(package: ModelPackage) -> None:
    manifest = package.manifest
    assert (manifest.patch_size, manifest.size_multiple, manifest.variant) == (
        32,
        64,
        "conv-bert/32",
    )
    proven = [entry for entry in manifest.parity if entry.precision == "fp32"]
    assert {(entry.file, entry.runtime) for entry in proven} == {
        (file, runtime) for file in (VISION_FILE, TEXT_FILE) for runtime in ("onnx", "openvino")
    }
    for entry in proven:
        assert entry.passed
        assert entry.reference.startswith("ConvBert, torch")
        assert entry.limits.max_relative_diff == 1e-4
    card = (package.path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Conv and BERT")
    assert f"| `{TEXT_FILE}` | openvino | fp32 |" in card


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_every_runtime_computes_what_the_encoder_computes(
    package: ModelPackage, encoder: ConvBert, known: None, runtime: str
) -> None:
    pixels_B3HW = np.random.default_rng(0).random((2, 3, 64, 192), dtype=np.float32)
    tokens = encoder.tokenizer.encode(["a red cat", "house"])
    with torch.no_grad():
        wanted = encoder.vision(torch.from_numpy(pixels_B3HW))
        ids, mask = map(torch.from_numpy, (tokens.token_ids_BL, tokens.mask_BL))
        wanted_BD = encoder.text(ids, mask).numpy()
    loaded = load_runtime(package, runtime=runtime, precision="fp32")
    found = loaded.encode_images(pixels_B3HW)
    assert found.grid_hw == (2, 6)
    ours = (found.cls1_BD, found.cls2_BD, found.patches_BND, found.values_BND)
    for array, tensor in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=1e-5)
    texts_BD = loaded.encode_texts(tokens.token_ids_BL, tokens.mask_BL)
    np.testing.assert_allclose(texts_BD, wanted_BD, rtol=0, atol=1e-5)
    loaded.close()


def over_both(served: "Service", method: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays of an answer, which are the same over both protocols."""
    rest, rpc = served.over_rest(method, fields), served.over_grpc(method, fields)
    assert rest.keys() == rpc.keys()
    for name, array in rest.items():
        np.testing.assert_array_equal(array, rpc[name])
    return rest


def test_images_are_embedded_with_the_sizes_of_the_encoder(
    served: "Service", encoder: ConvBert, photo: Callable[..., bytes]
) -> None:
    image = photo(1, (192, 128), "PNG")
    fields = {"images": [image], "outputs": ["cls1", "cls2", "patches", "values"]}
    arrays = over_both(served, "embed_images", {**fields, "fit": "aspect", "normalize": False})
    with Image.open(BytesIO(image)) as opened, torch.no_grad():
        outputs = encoder.vision(torch.from_numpy(to_planes(opened.convert("RGB"))[None]))
    names = ("cls1", "cls2", "patches", "values")
    for name, tensor in zip(names, outputs, strict=True):
        wanted = tensor[0].numpy()
        shape = (4, 6, WIDTH) if wanted.ndim == 2 else (WIDTH,)
        np.testing.assert_allclose(
            arrays[f"0.{name}"].reshape(shape), wanted.reshape(shape), rtol=0, atol=1e-5
        )
    with pytest.raises(InvalidRequest, match=r"resolution.*64"):
        served.over_rest("embed_images", {"images": [image], "resolution": 96})


def test_an_unknown_encoder_is_explained(package: ModelPackage, known: None) -> None:
    assert load_encoder(package.path).variant == "conv-bert"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(seam.LOADERS, KIND)
        with pytest.raises(EncoderError, match="of type 'test-conv-bert', which torch cannot"):
            load_encoder(package.path)
        with pytest.raises(UnusableRuntimeError, match="run with onnx, openvino and tensorrt"):
            load_runtime(package, runtime="torch")
        load_runtime(package, runtime="onnx").close()


def test_a_package_can_leave_the_torch_weights_out(
    package: ModelPackage,
    checkpoint: Path,
    known: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy(_: PackageContent, folder: Path, __: object) -> None:
        shutil.copytree(package.path / "onnx", folder / "onnx")

    monkeypatch.setattr(package_writer, "write_graphs", copy)
    monkeypatch.setattr(package_writer, "prove_package", lambda *_, **__: package.manifest.parity)
    small = export_package(checkpoint, tmp_path / "small", name="small", is_graphs_only=True)
    assert set(package.manifest.files) - set(small.manifest.files) == {"model.safetensors"}
    load_runtime(small, runtime="onnx").close()
    with pytest.raises(EncoderError, match="has graphs only and no model"):
        load_encoder(small.path)


@pytest.mark.parametrize("is_package", [True, False])
def test_such_packages_and_folders_are_converted(
    package: ModelPackage,
    checkpoint: Path,
    known: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_package: bool,
) -> None:
    written: list[PackageContent] = []

    def keep(content: PackageContent, *_: object, **__: object) -> ModelPackage:
        written.append(content)
        return package

    monkeypatch.setattr(package_writer, "write_package", keep)
    monkeypatch.setattr(conversion, "check_space", lambda *_: None)
    folder = package.path if is_package else checkpoint
    request = ConversionRequest(base=FolderSource(folder), precisions=("fp32", "fp16"))
    convert(request, tmp_path / "more", lambda _: None)
    (content,) = written
    assert isinstance(content.encoder, ConvBert)
    assert content.precisions == ("fp32", "fp16")
    assert content.draft.variant == ("conv-bert/32" if is_package else "conv-bert")
    assert content.draft.zero_shot.templates == ("tcl" if is_package else "none")
