"""An encoder of pretrained networks with closed-form heads: EfficientNet-Lite0 and MiniLM.

A cell is described in two spaces. In the first, features are whitened so that drawings of one name
are close (linear discriminant analysis). In the second, a cell is its probabilities of ImageNet's
classes. Both are unit vectors; they are scaled and joined, so that one cosine compares them all. A
text is described by what it is close to among known names: a softmax over their MiniLM embeddings
weights the names' own descriptions.

Shapes: B images or texts, N cells of the fine grid in row-major order, F features of a cell, D1 and
D2 widths of the spaces, D = D1 + D2, C classes of ImageNet, K known names, E width of MiniLM, L
tokens, H W pixels, h w rows and columns of cells.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from model.efficientnet_lite import FEATURE_WIDTH, STRIDE, Trunk
from model.encoder import CONFIG_FILE, WEIGHTS_FILE, Encoder
from model.text import TOKENIZER_FILE, TextTokenizer

MODEL_TYPE: Final = "tipserve_cells"
NUM_CLASSES: Final = 1000
SENTENCE_WIDTH: Final = 384
SMALLEST_LENGTH: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class CellConfig:
    """Sizes and constants of the encoder.

    Attributes:
        drawing_width: D1.
        class_width: D2.
        num_drawing_names: Known names of the first space.
        num_class_names: Known names of the second space.
        vocabulary: Word pieces of the text tower.
        text_depth: Layers of the text tower.
        max_text_tokens: Longest text.
        native_size: Side of the images that the heads were fitted to.
        class_temperature: Logits of ImageNet's classes are divided by it.
        coarse_share: Weight of the coarse cells in the mean of both that is classified.
        drawing_sharpness: Factor of MiniLM's cosines before the softmax over names of drawings.
        class_sharpness: Likewise for names of ImageNet's classes.
        class_weight: Length of the second space's vectors; the first space's have length 1.
        neighbour_sharpness: Factor of the cosine between neighbours that are averaged.
        temperature: Cosines are divided by it before a softmax over classes.
    """

    drawing_width: int
    class_width: int
    num_drawing_names: int
    num_class_names: int
    vocabulary: int
    text_depth: int = 6
    max_text_tokens: int = 64
    native_size: int = 320
    class_temperature: float = 2.5
    coarse_share: float = 0.15
    drawing_sharpness: float = 20.0
    class_sharpness: float = 33.0
    class_weight: float = 0.7
    neighbour_sharpness: float = 4.0
    temperature: float = 0.05


class TwoScales(nn.Module):
    """Cells of an image, and of the same image at half its size, on one grid."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return fine and coarse cells, both [B, F, h, w]."""
        fine_BFhw: Tensor = self.trunk(pixels_B3HW)
        coarse_BFhw = self.trunk(F.avg_pool2d(pixels_B3HW, 2))
        return fine_BFhw, F.interpolate(coarse_BFhw, scale_factor=2.0, mode="bilinear")


def smooth(unit_BhwD: Tensor, sharpness: float) -> Tensor:
    """Average each cell, a unit vector, with those of its eight neighbours that are alike.

    A row of cells is compared with the three rows around it by one product of matrices, of which
    all but the neighbours' columns are dropped: a tenth of the time of nine shifted copies.
    """
    height, width = unit_BhwD.shape[1:3]
    padded = F.pad(unit_BhwD, (0, 0, 0, 0, 1, 1))
    rows_BhRD = torch.cat([padded[:, row : row + height] for row in range(3)], dim=2)
    cosine_BhwR = unit_BhwD @ rows_BhRD.transpose(-1, -2)
    column_w = torch.arange(width, device=unit_BhwD.device)
    is_near_ww = (column_w[:, None] - column_w).abs() <= 1
    weight_BhwR = ((cosine_BhwR - 1) * sharpness).exp()
    return (weight_BhwR * is_near_ww.to(weight_BhwR.dtype).repeat(1, 3)) @ rows_BhRD


class CellVision(nn.Module):
    """The vision tower."""

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        self.config = config
        self.cells = TwoScales(Trunk())
        # Means of the cells that the heads were fitted to.
        self.fine_mean = nn.Parameter(torch.zeros(FEATURE_WIDTH))
        self.coarse_mean = nn.Parameter(torch.zeros(FEATURE_WIDTH))
        self.fine = nn.Linear(FEATURE_WIDTH, config.drawing_width, bias=False)
        self.coarse = nn.Linear(FEATURE_WIDTH, config.drawing_width, bias=False)
        self.classes = nn.Linear(FEATURE_WIDTH, NUM_CLASSES)
        self.space = nn.Linear(NUM_CLASSES, config.class_width, bias=False)

    def describe(self, fine_BNF: Tensor, coarse_BNF: Tensor) -> Tensor:
        """Describe cells in both spaces: [B, N, D]."""
        whitened_BND = self.fine(fine_BNF - self.fine_mean)
        whitened_BND = whitened_BND + self.coarse(coarse_BNF - self.coarse_mean)
        class_BND = self.describe_classes(fine_BNF, coarse_BNF) * self.config.class_weight
        return torch.cat([_unit(whitened_BND), class_BND], dim=-1)

    def describe_classes(self, fine_BNF: Tensor, coarse_BNF: Tensor) -> Tensor:
        """Describe cells in the second space: unit vectors [B, N, D2]."""
        mixed_BNF = fine_BNF + (coarse_BNF - fine_BNF) * self.config.coarse_share
        logits_BNC = self.classes(mixed_BNF) / self.config.class_temperature
        return _unit(self.space(logits_BNC.softmax(dim=-1)))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode images, float32 [B, 3, H, W] in [0, 1]; H and W multiples of 64.

        Returns:
            cls1 and cls2 [B, D] of the mean cell, cells [B, N, D], and cells averaged with alike
            neighbours [B, N, D].
        """
        fine_BFhw, coarse_BFhw = self.cells(pixel_values)
        described_BMD = self.describe(_with_mean(fine_BFhw), _with_mean(coarse_BFhw))
        cells_BND = described_BMD[:, :-1]
        unit_BND = _unit(cells_BND)
        values_BhwD = smooth(
            unit_BND.unflatten(1, fine_BFhw.shape[2:]), self.config.neighbour_sharpness
        )
        return described_BMD[:, -1], unit_BND.mean(dim=1), cells_BND, values_BhwD.flatten(1, 2)


def _unit(x: Tensor) -> Tensor:
    """Scale to length 1, as `F.normalize`, whose graph copies each length along its vector."""
    unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_LENGTH)
    return unit


def _with_mean(cells_BFhw: Tensor) -> Tensor:
    """Cells in a row, then their mean: [B, N + 1, F]."""
    cells_BFN = cells_BFhw.flatten(2)
    return torch.cat([cells_BFN, cells_BFN.mean(dim=2, keepdim=True)], dim=2).transpose(1, 2)


class _Kernel(nn.Module):
    """Descriptions of texts in one space from those of known names."""

    def __init__(self, num_names: int, width: int, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.keys = nn.Linear(SENTENCE_WIDTH, num_names, bias=False)
        self.values = nn.Linear(num_names, width, bias=False)

    def forward(self, texts_BE: Tensor) -> Tensor:
        """Return unit vectors [B, width]."""
        weight_BK = (self.keys(texts_BE) * self.sharpness).softmax(dim=-1)
        return F.normalize(self.values(weight_BK), dim=-1)


class Sentence(nn.Module):
    """MiniLM: the mean of BERT's last layer over the tokens of a text."""

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        size = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=SENTENCE_WIDTH,
            num_hidden_layers=config.text_depth,
            intermediate_size=4 * SENTENCE_WIDTH,
            max_position_embeddings=config.max_text_tokens,
        )
        self.network = BertModel(size, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return unit vectors [B, E]; zeros for a text without tokens."""
        tokens_BLE = self.network(input_ids, attention_mask).last_hidden_state
        total_BE = (tokens_BLE * attention_mask.to(tokens_BLE.dtype)[..., None]).sum(dim=1)
        return F.normalize(total_BE, dim=-1)


class CellText(nn.Module):
    """The text tower."""

    def __init__(self, config: CellConfig) -> None:
        super().__init__()
        self.config = config
        self.sentence = Sentence(config)
        self.drawings = _Kernel(
            config.num_drawing_names, config.drawing_width, config.drawing_sharpness
        )
        self.classes = _Kernel(config.num_class_names, config.class_width, config.class_sharpness)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts: [B, D]."""
        texts_BE = self.sentence(input_ids, attention_mask)
        weighted_BD = self.classes(texts_BE) * self.config.class_weight
        return torch.cat([self.drawings(texts_BE), weighted_BD], dim=-1)


class CellEncoder(Encoder):
    """The encoder with its tokenizer; see `model.encoder.Encoder`."""

    vision: CellVision
    text: CellText
    variant = "lite0-minilm"
    patch_size = STRIDE
    # The coarse cells need twice the stride.
    size_multiple = 2 * STRIDE
    # 0.8 of OpenVINO's CPU time for an image, with 240 MiB less in a server.
    cpu_runtime = "onnx"
    # 0.65 of float32's time with VNNI, 0.78 with AVX2 alone, and equal scores.
    cpu_precision = "int8"

    def __init__(self, config: CellConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.vision, self.text = CellVision(config), CellText(config)
        self._towers = nn.ModuleDict({"vision": self.vision, "text": self.text})
        self._towers.eval().requires_grad_(requires_grad=False)
        self.tokenizer = TextTokenizer(tokenizer, max_tokens=config.max_text_tokens)
        self.embed_dim = config.drawing_width + config.class_width
        self.native_size = config.native_size
        self.max_text_tokens = config.max_text_tokens
        self.temperature = config.temperature

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and tokenizer.json."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"model_type": MODEL_TYPE, **asdict(self.config)}
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        weights = self._towers.state_dict()
        save_file({name: w.contiguous() for name, w in weights.items()}, folder / WEIGHTS_FILE)
        self.tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load what `save` wrote; ValueError if settings or weights do not fit this class."""
        settings: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        settings.pop("model_type", None)
        try:
            config = CellConfig(**settings)
        except TypeError as error:
            raise ValueError(f"{folder / CONFIG_FILE} has unknown or missing settings") from error
        encoder = cls(config, Tokenizer.from_file(str(folder / TOKENIZER_FILE)))
        try:
            encoder._towers.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except RuntimeError as error:
            raise ValueError(f"the weights in {folder} do not fit: {error}") from error
        return encoder
