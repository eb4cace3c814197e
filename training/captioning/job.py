"""Runs a captioner over shards, one after another. Resumable; each shard is complete or absent.

Independent of models and services. The output folder holds `captions.json` (the settings that the
captions depend on), a shard and a report for each finished shard, and a journal for each unfinished
one. A shard with a report is not touched again.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from training.captioning.cost import Estimate, Price
from training.captioning.journal import (
    Failure,
    JobStopped,
    Journal,
    JournalBusy,
    Merge,
    Outcome,
    OutputFolder,
    Report,
    Usage,
    lacking,
    make_report,
    read_journal,
    read_report,
    settled,
    shard_paths,
    total_usage,
    write_report,
)
from training.data.shards.sample import Sample
from training.data.shards.tar_shard import write_shard

_SPACES = re.compile(r"\s+")
_QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("'", "'"), ("\u2018", "\u2019"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningConfig:
    """How captions are cleaned.

    Attributes:
        max_characters: Where a caption is cut, back to the end of a word. TIPSv2 does not publish
            its captions' lengths. Its text tower reads 64 tokens, about 300 characters of English,
            so 1000 keeps three times what can be read and stops a model that runs on.
    """

    max_characters: int = 1000

    def __post_init__(self) -> None:
        """Check the cap."""
        if self.max_characters < 1:
            raise ValueError("max_characters must be at least 1")


def clean_caption(text: str, config: CleaningConfig) -> str:
    """Clean a caption; may return "" where nothing is left.

    In this order: characters are composed (NFC), control and other invisible characters go, white
    space of any kind becomes single spaces, one pair of quotes around the whole goes, and what is
    longer than the cap is cut at a word's end.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = _SPACES.sub(" ", text).strip()
    for left, right in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in inner:
            text = inner.strip()
            break
    if len(text) <= config.max_characters:
        return text
    cut = text[: config.max_characters + 1]
    return cut.rsplit(" ", 1)[0].rstrip() if " " in cut else cut[: config.max_characters]


class ErrorBudget:
    """Counts what fails in one run of a job.

    A share alone would stop at the first image if that one fails, so a number of failures is
    free.
    """

    def __init__(self, *, max_share: float, free_failures: int) -> None:
        if not 0 <= max_share <= 1 or free_failures < 0:
            raise ValueError("the failures' share must be in [0, 1], the free failures at least 0")
        self._max_share = max_share
        self._free_failures = free_failures
        self._samples = 0
        self._kinds: Counter[str] = Counter()

    def spend(self, outcomes: Iterable[Outcome]) -> None:
        """Count some outcomes.

        Raises:
            JobStopped: More failed than may.
        """
        last = None
        for outcome in outcomes:
            self._samples += 1
            if outcome.failure is not None:
                self._kinds[outcome.failure.kind] += 1
                last = outcome
        failed = self._kinds.total()
        if last is None or failed <= max(self._free_failures, self._max_share * self._samples):
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._kinds.most_common())
        assert last.failure is not None
        raise JobStopped(
            f"stopped, because {failed} of {self._samples} samples failed ({kinds}), more than "
            f"--max-failure-share {self._max_share:g} allows; the last one, {last.key}, said: "
            f"{last.failure.message}. Mend the cause or allow more, and start the same command "
            "again: it goes on from here"
        )


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


def ask_consent(
    estimate: Estimate,
    *,
    spent_usd: float,
    max_cost_usd: float | None,
    is_agreed: bool,
    confirm: Callable[[], bool] | None,
) -> None:
    """Return where a job may begin: it stays below a given limit, or somebody agreed.

    Args:
        estimate: What is still to be paid.
        spent_usd: What earlier runs of the job paid.
        max_cost_usd: The limit for all its runs together; None for none.
        is_agreed: Whether the command itself says yes.
        confirm: Asks a person; None where nobody is there to be asked.

    Raises:
        ValueError: It may not begin; the message says what would let it.
    """
    if max_cost_usd is not None:
        at_most_usd = spent_usd + estimate.at_most_usd
        if at_most_usd > max_cost_usd:
            earlier = f", ${spent_usd:,.2f} of it spent already" if spent_usd else ""
            raise ValueError(
                f"the job may cost ${at_most_usd:,.2f}{earlier}, over --max-cost {max_cost_usd:g}; "
                "caption fewer shards, allow shorter answers, or raise the limit"
            )
        return
    if is_agreed or estimate.samples == 0:
        return
    if confirm is None:
        raise ValueError(
            "nobody is there to agree to the cost: give --yes, or a limit by --max-cost"
        )
    if not confirm():
        raise ValueError("nothing was sent")


def pending_samples(config: JobConfig, source: str) -> Iterator[Sample]:
    """Read the samples that a run would caption now.

    Raises:
        FileNotFoundError: There are no shards.
        ValueError: A shard is damaged.
    """
    folder = OutputFolder(path=config.output)
    for path in shard_paths(config.shards):
        if not folder.is_finished(path):
            yield from lacking(path, source, settled(read_journal(folder.journal(path))))


def earlier_usage(config: JobConfig) -> Usage:
    """Sum the tokens that the job's earlier runs paid for."""
    folder = OutputFolder(path=config.output)
    total = Usage()
    for path in shard_paths(config.shards):
        if folder.is_finished(path):
            total += read_report(folder.report(path)).usage
        else:
            total += total_usage(read_journal(folder.journal(path)).values())
    return total
