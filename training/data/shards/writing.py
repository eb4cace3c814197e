"""Builds a data set of shards from a list of items; resumable.

Shard n starts at item n * shard_size, so that a finished shard never has to be rebuilt. The record
of a shard is written after the shard, the manifest after all shards. Broken items are left out,
counted, and listed in the shard's record.
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
    DEFAULT_SHARD_SIZE,
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
    ReadSample,
    Sample,
    summarize,
    total,
)
from training.data.shards.tar_shard import write_shard

_ORIGIN_FILE = "origin.json"
_SKIPPED = "skipped"


class SampleSource(Protocol):
    """Items in a fixed order that can be turned into samples."""

    def __len__(self) -> int:
        """Number of items."""

    def fingerprint(self) -> str:
        """A digest that changes with the items."""

    def items(self, start: int, stop: int) -> Iterator[tuple[str, ReadSample]]:
        """Some items: the location of each, and what reads its sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """Settings of a data set.

    Attributes:
        kind: Kind of its source, in a word.
        shard_size: Items per shard.
        limits: Images outside these limits are left out.
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
    """Write the missing shards, then the manifest.

    Args:
        source: The items.
        folder: Output folder.
        plan: Shard size and image limits.
        is_shown: Whether to show a progress bar.

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
        for place, read in source.items(start, stop):
            try:
                sample = read()
                decode_tensor(sample.image, plan.limits)
            except BadSample as error:
                skipped.append(BrokenSample(place=place, reason=str(error)))
                continue
            summaries.append(summarize(sample))
            yield sample

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
