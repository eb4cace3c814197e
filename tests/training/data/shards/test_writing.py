"""Building shards: whole files only, resumable, with a manifest and a list of skipped items."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from training.data.scenes import SceneConfig, SceneSource
from training.data.shards.decoding import DEFAULT_LIMITS
from training.data.shards.image_folder import ImageFolder
from training.data.shards.item_sources import SceneItems
from training.data.shards.manifest import Manifest, ShardStore, find_damage, load_manifest
from training.data.shards.sample import BadSample, Sample
from training.data.shards.writing import ShardPlan, build_shards, list_skipped

PLAN = ShardPlan(kind="folder", shard_size=5)


class StoppingSource(ImageFolder):
    """Stops in the middle of the third shard."""

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BadSample]]:
        """Yield two items of the third shard, then stop."""
        for number, item in enumerate(super().items(start, stop)):
            if start == 10 and number == 2:
                raise KeyboardInterrupt
            yield item


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def build(image_folder: Path, out: Path) -> Callable[..., Manifest]:
    """Make shards of the images as they are now."""

    def run(folder: Path = out, plan: ShardPlan = PLAN) -> Manifest:
        return build_shards(ImageFolder(image_folder), folder, plan, is_shown=False)

    return run


Build = Callable[..., Manifest]


def test_a_data_set_holds_every_item_in_order(
    build: Build, out: Path, samples: list[Sample]
) -> None:
    assert [entry.summary.num_images for entry in build().shards] == [5, 5, 5, 5, 3]
    store = ShardStore(out)
    for number, sample in enumerate(samples):
        found = store.read(*divmod(number, 5))
        assert (found.image, found.captions) == (sample.image, sample.captions)
        assert (found.names, found.fields["license"]) == (sample.names, "CC0-1.0")


def test_a_stopped_build_resumes_to_the_same_files(
    build: Build, tmp_path: Path, image_folder: Path, out: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_shards(StoppingSource(image_folder), out, PLAN, is_shown=False)
    names = set(files(out))
    shards = {name for name in names if name.endswith(".tar")}
    assert shards == {"shard-000000.tar", "shard-000001.tar"}
    assert not [name for name in names if "tmp" in name or name == "manifest.json"]
    written = (out / "shard-000000.tar").stat().st_mtime_ns
    # A killed process cannot remove its temporary files.
    for name in (".shard-000002.tar.77.tmp", ".shard-000002.tar.offsets.npy.77.tmp"):
        (out / name).write_bytes(b"half")
    build()
    build(tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
    assert (out / "shard-000000.tar").stat().st_mtime_ns == written


def test_a_source_without_items_is_refused(out: Path, source: SceneSource) -> None:
    items = SceneItems(source=source, config=SceneConfig(size=28), count=0)
    with pytest.raises(ValueError, match="nothing to make"):
        build_shards(items, out, PLAN, is_shown=False)
    assert not out.exists()


def test_broken_items_are_left_out_counted_and_listed(
    build: Build, out: Path, image_folder: Path
) -> None:
    for number in range(5):  # a whole shard
        (image_folder / f"a/{number:09d}.png").write_bytes(b"no image")
    (image_folder / "b/000000012.json").write_text("{")
    manifest = build()
    assert ShardStore(out).shard_sizes.tolist() == [0, 5, 4, 5, 3]
    assert manifest.num_skipped == load_manifest(out).num_skipped == 6
    places = {item.place: item.reason for item in list_skipped(out)}
    assert set(places) == {*(f"a/{i:09d}.png" for i in range(5)), "b/000000012.png"}
    assert "no JSON" in places["b/000000012.png"]


def test_a_folder_with_other_shards_is_left_as_it_is(
    build: Build, tmp_path: Path, image_folder: Path
) -> None:
    build()
    other = ShardPlan(kind="folder", shard_size=6, limits=replace(DEFAULT_LIMITS, max_bytes=10**6))
    with pytest.raises(ValueError, match="another limits, shard_size"):
        build(plan=other)
    (image_folder / "c.png").write_bytes((image_folder / "a/000000000.png").read_bytes())
    with pytest.raises(ValueError, match="another fingerprint, num_items"):
        build()
    (tmp_path / "mine.tar").touch()
    with pytest.raises(ValueError, match="another origin"):
        build(tmp_path)


def test_damage_is_found_by_the_digests(build: Build, out: Path) -> None:
    build()
    assert find_damage(out) == []
    path = out / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (out / "shard-000003.tar").unlink()
    assert find_damage(out) == [
        "shard-000001.tar is not the file that was written",
        "shard-000003.tar is missing",
    ]


def test_a_shard_holds_at_least_one_item() -> None:
    with pytest.raises(ValueError, match="shard_size"):
        ShardPlan(kind="folder", shard_size=0)
