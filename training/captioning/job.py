"""Runs a captioner over shards: shard by shard, resumable, each shard whole or not there.

It knows nothing of models and services. The output folder holds `captions.json` (what the
captions depend on), for each finished shard the shard and its report, and for each unfinished
one a journal. A shard with a report is not touched again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from training.captioning.cleaning import CleaningConfig, clean_caption
from training.captioning.cost import Price
from training.captioning.error_budget import ErrorBudget
from training.captioning.journal import Journal, JournalBusy, settled
from training.captioning.merge import Merge
from training.captioning.outcome import Failure, JobStopped, Outcome
from training.captioning.output_folder import OutputFolder
from training.captioning.report import Report, make_report, read_report, write_report
from training.captioning.shards import lacking, shard_paths
from training.data.shards.sample import Sample
from training.data.shards.tar_shard import write_shard


class Captioner(Protocol):
    """A model or a service that captions images."""

    source: str
    """What its captions are called in a sample's JSON."""

    def settings(self) -> Mapping[str, Any]:
        """Return everything the captions depend on, as JSON's types and without secrets."""

    def caption(self, samples: Iterable[Sample]) -> Iterator[list[Outcome]]:
        """Caption samples, taking them as they are needed.

        Each list holds the outcomes that were made together; each sample has one outcome. The
        order is free.

        Raises:
            JobStopped: No sample can be captioned, so there is no use in going on.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """What to caption, and when to give up.

    Attributes:
        shards: Folder of shards, or one shard.
        output: Folder that the shards with captions are written to.
        cleaning: How captions are cleaned.
        max_failure_share: Stop when more than this share of a run's samples fails.
        free_failures: This many failures never stop a run.
        price: What tokens cost; None for a model that runs here.
        max_cost_usd: Stop when the job has cost more, all its runs together.
    """

    shards: Path
    output: Path
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    max_failure_share: float = 0.05
    free_failures: int = 20
    price: Price | None = None
    max_cost_usd: float | None = None

    def __post_init__(self) -> None:
        """Check that input and output differ."""
        folder = self.shards.parent if self.shards.is_file() else self.shards
        if folder.resolve() == self.output.resolve():
            raise ValueError(f"--output {self.output} is where the shards lie; name another folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a job stands.

    Attributes:
        done: Shards that are finished, also by earlier runs.
        busy: Shards that another process was working on, which were passed over.
        shards: How many there are.
        total: What became of all samples so far, those of earlier runs included.
    """

    done: int
    busy: int
    shards: int
    total: Report


class CaptionJob:
    """Captions the shards of a folder, once."""

    def __init__(
        self,
        config: JobConfig,
        captioner: Captioner,
        *,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._config = config
        self._captioner = captioner
        self._on_progress = on_progress
        self._folder = OutputFolder(path=config.output)
        self._budget = ErrorBudget(
            max_share=config.max_failure_share, free_failures=config.free_failures
        )

    def run(self) -> Progress:
        """Caption what is not captioned yet.

        Returns:
            Where the job stands at the end.

        Raises:
            JobStopped: Too much failed, it cost too much, or the service refuses the whole job.
            ValueError: The output folder was begun with other settings, or a shard is damaged.
            FileNotFoundError: There are no shards.
        """
        paths = shard_paths(self._config.shards)
        self._folder.claim(
            {
                "source": self._captioner.source,
                "cleaning": asdict(self._config.cleaning),
                "captioner": dict(self._captioner.settings()),
            }
        )
        progress = Progress(done=0, busy=0, shards=len(paths), total=Report())
        for path in paths:
            try:
                self._caption_shard(path, progress)
                total = progress.total + read_report(self._folder.report(path))
                progress = replace(progress, done=progress.done + 1, total=total)
            except JournalBusy:
                progress = replace(progress, busy=progress.busy + 1)
            self._on_progress(progress)
        return progress

    def _caption_shard(self, path: Path, before: Progress) -> None:
        if self._folder.is_finished(path):
            return
        with Journal(self._folder.journal(path)) as journal:
            # Another process may have finished it between our look and our lock.
            if not self._folder.is_finished(path):
                self._fill(path, journal, before)
                self._finish(path, journal)
            journal.delete()

    def _fill(self, path: Path, journal: Journal, before: Progress) -> None:
        """Caption the samples that the journal lacks, and write down each answer at once."""
        kept = settled(journal.outcomes)
        shard = make_report(kept.values())
        for outcomes in self._captioner.caption(lacking(path, self._captioner.source, kept)):
            cleaned = [self._clean(outcome) for outcome in outcomes]
            journal.append(cleaned)
            shard += make_report(cleaned)
            total = before.total + shard
            self._on_progress(replace(before, total=total))
            self._check_cost(total)
            self._budget.spend(cleaned)

    def _finish(self, path: Path, journal: Journal) -> None:
        """Write the shard and then its report, which says that all is done."""
        merge = Merge(shard=path, outcomes=journal.outcomes, source=self._captioner.source)
        write_shard(self._folder.shard(path), merge.samples())
        self._budget.spend(merge.unusable)
        outcomes = [*journal.outcomes.values(), *merge.unusable]
        write_report(self._folder.report(path), make_report(outcomes, already=merge.already))

    def _clean(self, outcome: Outcome) -> Outcome:
        if outcome.caption is None:
            return outcome
        caption = clean_caption(outcome.caption, self._config.cleaning)
        if caption:
            return replace(outcome, caption=caption)
        failure = Failure(kind="empty", message="nothing was left of the answer after cleaning")
        return replace(outcome, caption=None, failure=failure)

    def _check_cost(self, total: Report) -> None:
        price, most = self._config.price, self._config.max_cost_usd
        if price is not None and most is not None and price.of(total.usage) > most:
            raise JobStopped(
                f"stopped, because the job has cost ${price.of(total.usage):.2f}, more than "
                f"--max-cost {most:g}; with a higher one it goes on from here"
            )
