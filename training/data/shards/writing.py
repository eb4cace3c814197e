"""Builds a data set of shards from anything that can list its items; stopped, it goes on later.

Shard number n holds items n * shard_size and on, so that a finished shard never has to be made
again. A shard's own record is written after it, the manifest after all: what is there is whole.
Items that are broken are left out, counted, and listed in the shard's record.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.image_codec import ImageLimits
from training.data.shards.decoding import DEFAULT_LIMITS, decode_tensor
from training.data.shards.manifest import (
    MANIFEST_FILE,
    Manifest,
    ShardEntry,
    make_entry,
    read_entry,
    save_manifest,
    write_json,
)
from training.data.shards.sample import (
    BadSample,
    BrokenSample,
    DataSummary,
    Sample,
    summarize,
    total,
)
from training.data.shards.tar_shard import write_shard

DEFAULT_SHARD_SIZE = 1000
_ORIGIN_FILE = "origin.json"
_SKIPPED = "skipped"


class SampleSource(Protocol):
    """Items in a fixed order, each of which can be made into a sample."""

    def __len__(self) -> int:
        """How many items there are."""

    def fingerprint(self) -> str:
        """A digest that changes when the items do."""

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BadSample]]:
        """Make some items: the place of each, and the sample or what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """How a data set is divided.

    Attributes:
        kind: What it is made from, in a word.
        shard_size: Items of a shard. A thousand photos of 100 kB make 100 MB, which are quickly
            written again when a build is stopped, and large enough for any file system.
        limits: Images outside of them are left out.
    """

    kind: str
    shard_size: int = DEFAULT_SHARD_SIZE
    limits: ImageLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        """Check the size."""
        if self.shard_size < 1:
            raise ValueError("shard_size must be at least 1")


def build_shards(
    source: SampleSource, folder: Path, plan: ShardPlan, *, is_shown: bool = True
) -> Manifest:
    """Write whatever shards are missing, then the manifest.

    Args:
        source: The items.
        folder: Where the shards go; its name shows in the progress bar.
        plan: How they are divided.
        is_shown: Whether the progress bar is.

    Raises:
        ValueError: There is no item, or the folder was begun with other items or another plan.
    """
    if not len(source):
        raise ValueError("there is nothing to make shards of")
    origin = _check_origin(source, folder, plan)
    num_shards = -(-len(source) // plan.shard_size)
    with _progress_bar(is_shown=is_shown) as bar:
        task = bar.add_task(f"shards in {folder}", total=len(source), skipped=0)
        entries = []
        for number in range(num_shards):
            entry = _finished(folder, number)
            if entry is None:
                entry = _build_shard(source, folder, plan, number)
            entries.append(entry)
            done = min(len(source), (number + 1) * plan.shard_size)
            bar.update(task, completed=done, skipped=sum(e.num_skipped for e in entries))
    manifest = Manifest(origin=origin, shards=entries)
    save_manifest(folder, manifest)
    return manifest


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:06d}.tar"


def list_skipped(folder: Path) -> list[BrokenSample]:
    """List the items that were left out when a data set was built."""
    records = sorted(folder.glob("shard-*.json"))
    contents = [json.loads(record.read_text(encoding="utf-8")) for record in records]
    return [BrokenSample(**item) for content in contents for item in content[_SKIPPED]]


def _check_origin(source: SampleSource, folder: Path, plan: ShardPlan) -> dict[str, Any]:
    """Compare with what the folder was begun with, or note it down."""
    origin = {**asdict(plan), "num_items": len(source), "fingerprint": source.fingerprint()}
    path = folder / _ORIGIN_FILE
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*origin, *begun} if origin.get(key) != begun.get(key))
        if changed:
            raise ValueError(
                f"{folder} was begun with another {', '.join(changed)}: name another folder, or "
                "remove this one"
            )
    elif (folder / MANIFEST_FILE).exists() or any(folder.glob("*.tar")):
        raise ValueError(f"{folder} holds shards of another origin: name another folder")
    write_json(path, origin)
    return origin


def _record_path(folder: Path, number: int) -> Path:
    return (folder / shard_name(number)).with_suffix(".json")


def _finished(folder: Path, number: int) -> ShardEntry | None:
    record = _record_path(folder, number)
    if not record.exists() or not (folder / shard_name(number)).exists():
        return None
    content = json.loads(record.read_text(encoding="utf-8"))
    return read_entry({key: value for key, value in content.items() if key != _SKIPPED})


def _build_shard(source: SampleSource, folder: Path, plan: ShardPlan, number: int) -> ShardEntry:
    start = number * plan.shard_size
    stop = min(len(source), start + plan.shard_size)
    path, summaries, skipped = folder / shard_name(number), list[DataSummary](), []

    def good_samples() -> Iterator[Sample]:
        for place, item in source.items(start, stop):
            try:
                if isinstance(item, BadSample):
                    raise item
                decode_tensor(item.image, plan.limits)
            except BadSample as error:
                skipped.append(BrokenSample(place=place, reason=str(error)))
                continue
            summaries.append(summarize([item]))
            yield item

    write_shard(path, good_samples())
    entry = make_entry(path, summary=total(summaries), num_skipped=len(skipped))
    record = {**asdict(entry), _SKIPPED: [asdict(item) for item in skipped]}
    write_json(_record_path(folder, number), record)
    return entry


def _progress_bar(*, is_shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[skipped]} skipped"),
        TimeRemainingColumn(),
        refresh_per_second=2,
        disable=not is_shown,
    )
