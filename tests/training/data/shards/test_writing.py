"""Building shards: whole ones only, going on where it stopped, with an account of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from training.data.scenes import SceneConfig, SceneSource
from training.data.shards.decoding import DEFAULT_LIMITS
from training.data.shards.image_folder import ImageFolder
from training.data.shards.item_sources import SceneItems
from training.data.shards.manifest import ShardStore, find_damage, load_manifest
from training.data.shards.sample import BadSample, Sample
from training.data.shards.writing import ShardPlan, build_shards, list_skipped

PLAN = ShardPlan(kind="folder", shard_size=5)


class StoppingSource(ImageFolder):
    """Stops in the middle of the third shard, once."""

    stops = True

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BadSample]]:
        """Yield two items of the third shard, then stop."""
        for number, item in enumerate(super().items(start, stop)):
            if self.stops and start == 10 and number == 2:
                raise KeyboardInterrupt
            yield item


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_data_set_holds_every_item_in_order(
    tmp_path: Path, image_folder: Path, samples: list[Sample]
) -> None:
    manifest = build_shards(ImageFolder(image_folder), tmp_path / "out", PLAN, is_shown=False)
    assert [entry.summary.num_images for entry in manifest.shards] == [5, 5, 5, 5, 3]
    store = ShardStore(tmp_path / "out")
    for number, sample in enumerate(samples):
        found = store.read(*divmod(number, 5))
        assert (found.image, found.captions, found.names) == (
            sample.image,
            sample.captions,
            sample.names,
        )
        assert found.fields["license"] == "CC0-1.0"


def test_a_stopped_build_resumes_to_the_same_files(tmp_path: Path, image_folder: Path) -> None:
    source = StoppingSource(image_folder)
    with pytest.raises(KeyboardInterrupt):
        build_shards(source, tmp_path / "stopped", PLAN, is_shown=False)
    names = set(files(tmp_path / "stopped"))
    assert {name for name in names if name.endswith(".tar")} == {
        "shard-000000.tar",
        "shard-000001.tar",
    }
    assert not [name for name in names if "tmp" in name or name == "manifest.json"]
    written = (tmp_path / "stopped/shard-000000.tar").stat().st_mtime_ns
    source.stops = False
    build_shards(source, tmp_path / "stopped", PLAN, is_shown=False)
    build_shards(ImageFolder(image_folder), tmp_path / "whole", PLAN, is_shown=False)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert (tmp_path / "stopped/shard-000000.tar").stat().st_mtime_ns == written


def test_files_half_written_by_a_killed_build_are_removed(
    tmp_path: Path, image_folder: Path
) -> None:
    (tmp_path / "killed").mkdir()
    for name in (".shard-000002.tar.77.tmp", ".shard-000001.tar.offsets.npy.77.tmp"):
        (tmp_path / "killed" / name).write_bytes(b"half")
    for name in ("killed", "whole"):
        build_shards(ImageFolder(image_folder), tmp_path / name, PLAN, is_shown=False)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_nothing_makes_no_data_set(tmp_path: Path, source: SceneSource) -> None:
    items = SceneItems(source=source, config=SceneConfig(size=28), count=0)
    with pytest.raises(ValueError, match="nothing to make"):
        build_shards(items, tmp_path / "out", PLAN, is_shown=False)
    assert not (tmp_path / "out").exists()


def test_broken_items_are_left_out_counted_and_listed(tmp_path: Path, image_folder: Path) -> None:
    (image_folder / "a/000000003.png").write_bytes(b"no image")
    (image_folder / "b/000000012.json").write_text("{")
    manifest = build_shards(ImageFolder(image_folder), tmp_path / "out", PLAN, is_shown=False)
    assert [entry.summary.num_images for entry in manifest.shards] == [4, 5, 4, 5, 3]
    assert manifest.num_skipped == load_manifest(tmp_path / "out").num_skipped == 2
    places = {item.place: item.reason for item in list_skipped(tmp_path / "out")}
    assert set(places) == {"a/000000003.png", "b/000000012.png"}
    assert "no JSON" in places["b/000000012.png"]


def test_a_shard_of_broken_items_alone_is_empty(tmp_path: Path, image_folder: Path) -> None:
    for number in range(5):
        (image_folder / f"a/{number:09d}.png").write_bytes(b"no image")
    build_shards(ImageFolder(image_folder), tmp_path / "out", PLAN, is_shown=False)
    assert ShardStore(tmp_path / "out").shard_sizes.tolist() == [0, 5, 5, 5, 3]


def test_a_folder_begun_with_something_else_is_left_alone(
    tmp_path: Path, image_folder: Path
) -> None:
    source = ImageFolder(image_folder)
    build_shards(source, tmp_path / "out", PLAN, is_shown=False)
    other = ShardPlan(kind="folder", shard_size=6, limits=replace(DEFAULT_LIMITS, max_bytes=10**6))
    with pytest.raises(ValueError, match="another limits, shard_size"):
        build_shards(source, tmp_path / "out", other, is_shown=False)
    (image_folder / "c.png").write_bytes((image_folder / "a/000000000.png").read_bytes())
    with pytest.raises(ValueError, match="another fingerprint, num_items"):
        build_shards(ImageFolder(image_folder), tmp_path / "out", PLAN, is_shown=False)


def test_shards_of_unknown_origin_are_left_alone(tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="another origin"):
        build_shards(ImageFolder(image_folder), tmp_path / "out", PLAN, is_shown=False)


def test_damage_is_found_by_the_digests(tmp_path: Path, image_folder: Path) -> None:
    build_shards(ImageFolder(image_folder), tmp_path / "out", PLAN, is_shown=False)
    assert find_damage(tmp_path / "out") == []
    path = tmp_path / "out/shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "out/shard-000003.tar").unlink()
    assert find_damage(tmp_path / "out") == [
        "shard-000001.tar is not the file that was written",
        "shard-000003.tar is missing",
    ]


def test_a_shard_holds_at_least_one_item() -> None:
    with pytest.raises(ValueError, match="shard_size"):
        ShardPlan(kind="folder", shard_size=0)
