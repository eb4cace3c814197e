"""Scenes in shards: images without loss, captions and names, no masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from training.data.backgrounds import Photo
from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.shards.decoding import DEFAULT_LIMITS, decode_tensor
from training.data.shards.item_sources import SceneItems
from training.data.shards.manifest import ShardStore
from training.data.shards.writing import ShardPlan, build_shards

CONFIG = SceneConfig(size=28, count_weights=(0.5, 0.5), min_size=0.5, max_size=0.9)


def test_scenes_stream_into_shards_and_leave_their_masks_behind(
    tmp_path: Path, source: SceneSource
) -> None:
    items = SceneItems(source=source, config=CONFIG, count=5)
    build_shards(items, tmp_path, ShardPlan(kind="scenes", shard_size=3), is_shown=False)
    store = ShardStore(tmp_path)
    assert store.shard_sizes.tolist() == [3, 2]
    for index in range(5):
        scene, sample = compose_scene(source, index, CONFIG), store.read(*divmod(index, 3))
        pixels_SS3 = decode_tensor(sample.image, DEFAULT_LIMITS).permute(1, 2, 0).numpy()
        assert np.array_equal(pixels_SS3, scene.pixels_SS3)
        assert sample.captions == scene.captions.by_source()
        assert sample.names == scene.captions.names
        assert set(sample.members()) == {f"{index:09d}.png", f"{index:09d}.json"}
        assert not sample.fields


def test_the_fingerprint_follows_what_scenes_are_made_of(source: SceneSource) -> None:
    items = SceneItems(source=source, config=CONFIG, count=5)
    assert replace(items, count=7).fingerprint() == items.fingerprint()
    assert replace(items, config=replace(CONFIG, size=42)).fingerprint() != items.fingerprint()
    photo = Photo(pixels_HW3=np.zeros((4, 4, 3), np.uint8), phrase="a night")
    for other in (
        replace(source, seed=1),
        replace(source, photos=(photo,)),
        replace(source, keywords={"dog": ("bark",)}),
    ):
        assert replace(items, source=other).fingerprint() != items.fingerprint()
