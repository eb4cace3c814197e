"""The recipes at full size: the paper's numbers, the family's sizes, and one step at toy size."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import Tipsv2Model

from training.__main__ import main
from training.config import TrainingConfig, text_of, vision_of
from training.data.shards.batches import ShardsConfig
from training.recipes.scale import NUM_RANKS, SCALE_RECIPES, TEACHER

SIZES = {"g14": 1536, "so400m14": 1152, "l14": 1024, "b14": 768, "s14": 384}


def crops(config: TrainingConfig) -> tuple[int | None, int, int]:
    """Sides of the global and of the local crops, and how many of these."""
    assert isinstance(config.data, ShardsConfig)
    cut = config.data.crops
    return cut.global_size, cut.local_size, cut.num_local


@pytest.mark.parametrize("size", SIZES)
def test_both_stages_have_the_papers_numbers_and_the_familys_size(size: str) -> None:
    name = TEACHER if size == "g14" else f"student-{size}"
    low, high = SCALE_RECIPES[name](), SCALE_RECIPES[f"{name}-high-res"]()
    assert (low.num_steps, low.batch_size * NUM_RANKS) == (90_000, 8192)
    assert (high.num_steps, high.batch_size * NUM_RANKS) == (9_000, 4096)
    assert (crops(low), crops(high)) == ((224, 98, 6), (448, 140, 6))
    assert (low.start, high.start) == (None, low.folder)
    assert (high.name, high.model, high.method) == (f"{low.name}-high-res", low.model, low.method)
    built = low.model.build(low.model.vocab_size)
    assert vision_of(built).hidden_size == text_of(built).hidden_size == SIZES[size]
    assert (text_of(built).vocab_size, vision_of(built).image_size) == (32_000, 448)


@pytest.fixture
def shrink(make_images: Callable[..., Path], tmp_path: Path) -> Callable[[str], list[str]]:
    """Options that make a recipe small; all other settings are the recipe's."""
    shards = make_images(captioned=6, size=(160, 130))

    def lines(name: str) -> list[str]:
        config, runs = SCALE_RECIPES[name](), tmp_path / "runs"
        global_size, local_size = (112, 28) if name.endswith("-high-res") else (56, 14)
        values = {
            "model.variant": "custom",
            "model.dim": 48 if config.teacher is None else 32,
            "model.vision_layers": 2,
            "model.text_layers": 1,
            "model.heads": 2,
            "model.vocab_size": 300,
            "method.head.hidden": 32,
            "method.head.bottleneck": 16,
            "method.head.num_prototypes": 24,
            "data.folder": shards,
            "data.crops.global_size": global_size,
            "data.crops.local_size": local_size,
            "data.num_workers": 0,
            "batch_size": 4,
            "num_steps": 1,
            "precision": "float32",
            "log_every": 1,
            "runs": runs,
        }
        if config.teacher is not None:
            values["teacher"] = runs / config.teacher.name
        if config.start is not None:
            values["start"] = runs / config.start.name
        return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]

    return lines


def test_all_stages_run_at_toy_size(shrink: Callable[[str], list[str]], tmp_path: Path) -> None:
    for name in (TEACHER, f"{TEACHER}-high-res", "student-s14", "student-s14-high-res"):
        assert main([name, *shrink(name)]) == 0, name
        folder = tmp_path / "runs" / name
        trained = Tipsv2Model.from_pretrained(folder / "model")
        assert all(bool(p.isfinite().all()) for p in trained.parameters())
        assert (folder / "heads.pt").exists()
