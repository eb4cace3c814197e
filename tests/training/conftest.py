"""Drawings, scenes, models and a data folder that need no fetched art: all small, all synthetic."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.config import DataConfig, ModelConfig, Stage, TrainingConfig
from training.data.backgrounds import PHOTOS
from training.data.batch import Batch, RunShare, TextBatch, with_unit_pixels
from training.data.concepts import all_concepts
from training.data.folder import BANK_STYLES, DataFolder, common_names
from training.data.scenes import SceneConfig, SceneSource
from training.data.sprites import SPRITE_PIXELS, SpriteBank
from training.evaluate.sets import development_benchmarks, rare_names
from training.heads import HeadConfig
from training.inputs import scenes as scene_inputs
from training.inputs.scenes import SceneBatches
from training.methods.pretrain import PretrainConfig
from training.optim import OptimConfig
from training.run import new_model
from training.tokenizer import train_tokenizer

DRAWN_STYLES = ("noto", "twemoji", "fluent-3d", "openmoji")
TINY_MODEL = ModelConfig(
    dim=48, vision_layers=2, text_layers=1, heads=2, native_size=56, vocab_size=400
)
TINY_HEAD = HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)
TINY_SCENES = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


def _shape(number: int, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Draw a disc, a square, a star or a ring, uint8 [S, S, 4]."""
    side = SPRITE_PIXELS
    image = Image.new("RGBA", (side, side))
    draw, box = ImageDraw.Draw(image), (2, 2, side - 3, side - 3)
    if number % 4 == 1:
        draw.rectangle(box, fill=colour)
    elif number % 4 == 2:
        angles = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.28, 0.5) * (side - 4)
        points = side / 2 + radius[:, None] * np.stack((np.sin(angles), -np.cos(angles)), axis=1)
        draw.polygon([(float(x), float(y)) for x, y in points], fill=colour)
    else:
        draw.ellipse(box, fill=colour, outline=(20, 20, 20), width=number % 4 * 4)
    return np.asarray(image)


def _drawn_names() -> list[str]:
    """Eight everyday names, six rarer ones that are seen, four that are not."""
    unseen = sorted(concept.name for concept in all_concepts() if concept.is_unseen)
    return [*sorted(common_names())[:8], *sorted(rare_names())[:6], *unseen[:4]]


@pytest.fixture(scope="session")
def sprite_bank() -> SpriteBank:
    """One coloured shape for each of eighteen names in each of four styles."""
    rng = np.random.default_rng(0)
    index = {concept.name: number for number, concept in enumerate(all_concepts())}
    rgba, concepts, styles = [], [], []
    for style in DRAWN_STYLES:
        for number, name in enumerate(_drawn_names()):
            red, green, blue = (int(value) for value in rng.integers(30, 226, 3))
            rgba.append(_shape(number, (red, green, blue)))
            concepts.append(index[name])
            styles.append(BANK_STYLES.index(style))
    return SpriteBank(
        rgba_MSS4=np.stack(rgba),
        concept_M=np.asarray(concepts),
        style_M=np.asarray(styles),
        styles=BANK_STYLES,
    )


@pytest.fixture(scope="session")
def source(sprite_bank: SpriteBank) -> SceneSource:
    """Training scenes of the fourteen seen names in two styles, on patterns."""
    return SceneSource(
        bank=sprite_bank,
        styles=("noto", "twemoji"),
        photos=(),
        keywords={},
        names=frozenset(_drawn_names()[:14]),
        split="train",
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tipsv2Tokenizer:
    """A student's tokenizer that knows the drawn names."""
    texts = [f"a {name} on the left, on a plain red background" for name in _drawn_names()]
    return train_tokenizer(texts, TINY_MODEL.vocab_size)


@pytest.fixture
def make_batches(source: SceneSource, tokenizer: Tipsv2Tokenizer) -> Callable[..., SceneBatches]:
    """Build the batches of a tiny run; arguments go to SceneBatches."""

    def make(
        *,
        num_steps: int = 6,
        batch_size: int = 4,
        stages: Sequence[Stage] = (Stage(scenes=TINY_SCENES),),
        rank: int = 0,
        num_ranks: int = 1,
    ) -> SceneBatches:
        share = RunShare(batch_size=batch_size, num_steps=num_steps, rank=rank, num_ranks=num_ranks)
        return SceneBatches(source, tokenizer, DataConfig(stages=tuple(stages)), share)

    return make


@pytest.fixture
def batch(make_batches: Callable[..., SceneBatches]) -> Batch:
    """Four scenes of 28 pixels, in [0, 1]."""
    return with_unit_pixels(make_batches()[0])


def cut_batch(batch: Batch, part: int, parts: int) -> Batch:
    """One of several equal micro-batches of a batch whose images all have captions."""
    size = len(batch.pixels_B3HW) // parts
    mine = slice(part * size, (part + 1) * size)

    def texts(whole: TextBatch) -> TextBatch:
        return TextBatch(token_ids_BL=whole.token_ids_BL[mine], mask_BL=whole.mask_BL[mine])

    return replace(
        batch,
        pixels_B3HW=batch.pixels_B3HW[mine],
        locals_CB3hw=batch.locals_CB3hw[:, mine],
        captioned_B=batch.captioned_B[mine],
        cls1=texts(batch.cls1),
        cls1_ids_T=batch.cls1_ids_T[mine],
        cls2=texts(batch.cls2),
        cls2_ids_T=batch.cls2_ids_T[mine],
    )


def make_tiny_config(root: Path) -> TrainingConfig:
    """Six steps of pretraining below a folder, the second half with the patch loss.

    By AdamW in float32: some CPUs have no instructions for bfloat16, in which Muon computes too.
    """
    return TrainingConfig(
        name="tiny",
        method=PretrainConfig(head=TINY_HEAD, ibot_start=0.5),
        model=TINY_MODEL,
        data=DataConfig(
            folder=root / "data",
            styles=("noto", "twemoji"),
            stages=(Stage(scenes=TINY_SCENES),),
            num_workers=0,
        ),
        optim=OptimConfig(optimizer="adamw"),
        num_steps=6,
        batch_size=4,
        precision="float32",
        runs=root / "runs",
        log_every=1,
        validate_every=0,
    )


def use_few_scenes(patch: pytest.MonkeyPatch) -> None:
    """Use few scenes for tokenizer and validation."""
    patch.setattr(scene_inputs, "_TOKENIZER_SCENES", 10)
    few = partial(development_benchmarks, num_scenes=2)
    patch.setattr(scene_inputs, "development_benchmarks", few)


@pytest.fixture
def tiny_config(tmp_path: Path) -> TrainingConfig:
    """The tiny run below the test's folder."""
    return make_tiny_config(tmp_path)


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Fill a folder with images; the first ones have captions."""

    def make(
        name: str = "images",
        *,
        count: int = 6,
        captioned: int = 0,
        size: tuple[int, int] = (40, 30),
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            path = folder / f"{number}.png"
            Image.new("RGB", size, (40 * number % 256, 90, 120)).save(path)
            if number < captioned:
                path.with_suffix(".txt").write_text(f"a plain wall, number {number}", "utf-8")
        return folder

    return make


@pytest.fixture
def student_model(tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer) -> Tipsv2Model:
    """A fresh model of width 48 that a test may train."""
    return new_model(tiny_config, len(tokenizer))


@pytest.fixture(scope="session")
def data_folder(sprite_bank: SpriteBank, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """A folder as `python -m training data` writes it, with shapes for art. Do not change it."""
    data = DataFolder(path=tmp_path_factory.mktemp("data"))
    sprite_bank.save(data.path / "sprites.npz")
    annotations = data.art.npm / "cldr-annotations-full/annotations/en/annotations.json"
    annotations.parent.mkdir(parents=True)
    words = {
        str(number): {"tts": [drawing], "default": [concept.name, f"kind of {concept.name}"]}
        for number, concept in enumerate(all_concepts())
        for drawing in concept.drawings[:1]
    }
    text = json.dumps({"annotations": {"annotations": words}})
    annotations.write_text(text, encoding="utf-8")
    data.photos.mkdir(parents=True)
    for number, (file, _, _) in enumerate(PHOTOS):
        Image.new("RGB", (40, 30), (30 * number, 90, 120)).save(data.photos / file)
    return data
