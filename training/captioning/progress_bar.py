"""Shows a captioning job as a line that moves: shards, captions, failures, dollars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from training.captioning.cost import Price
from training.captioning.job import Progress


@contextmanager
def progress_bar(
    name: str, *, console: Console, price: Price | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Show a bar while the block runs; yields what a job reports to."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(f"{name}: shards", total=None, detail="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.done,
                total=progress.shards,
                detail=describe(progress, price),
            )

        yield show


def describe(progress: Progress, price: Price | None = None) -> str:
    """Put a job's state into words: "1,200 captions, 3 failed, $0.41"."""
    total = progress.total
    parts = [f"{total.captioned:,} captions", f"{len(total.failures):,} failed"]
    if total.already:
        parts.append(f"{total.already:,} had one")
    if price is not None:
        parts.append(f"${price.of(total.usage):,.2f}")
    if progress.busy:
        parts.append(f"{progress.busy} shards are another process's")
    return ", ".join(parts)
