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

from training.captioning.cost import CostEstimate, Price
from training.captioning.journal import (
    CaptionMerge,
    Failure,
    JobStopped,
    Journal,
    JournalBusy,
    Outcome,
    OutputFolder,
    ShardReport,
    Usage,
    make_report,
    read_journal,
    read_report,
    settled,
    shard_paths,
    total_usage,
    uncaptioned,
    write_json,
)
from training.data.shards.sample import Sample
from training.data.shards.tar_shard import write_shard

_SPACES = re.compile(r"\s+")
_QUOTES = (('"', '"'), ("\u201c", "\u201d"), ("'", "'"), ("\u2018", "\u2019"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningConfig:
    """How captions are cleaned.

    Attributes:
        max_characters: Length at which a caption is cut, back to the end of a word. Not published
            by TIPSv2. Its text tower reads 64 tokens, about 300 characters of English, so 1000
            keeps three times that and limits a model that does not stop.
    """

    max_characters: int = 1000

    def __post_init__(self) -> None:
        """Check the cap."""
        if self.max_characters < 1:
            raise ValueError("max_characters must be at least 1")


def clean_caption(text: str, config: CleaningConfig) -> str:
    """Clean a caption; the result may be empty.

    In this order: compose characters (NFC), remove control and other invisible characters, turn
    white space into single spaces, remove one pair of quotes around the whole, cut to the maximum
    length at the end of a word.
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
    """Limits the failures in one run of a job.

    A limit by share alone would stop the job if the first image fails, so a number of failures is
    always allowed.
    """

    def __init__(self, *, max_share: float, free_failures: int) -> None:
        if not 0 <= max_share <= 1 or free_failures < 0:
            raise ValueError("max_failure_share must be in [0, 1], free_failures at least 0")
        self._max_share = max_share
        self._free_failures = free_failures
        self._samples = 0
        self._kinds: Counter[str] = Counter()

    def spend(self, outcomes: Iterable[Outcome]) -> None:
        """Count some outcomes.

        Raises:
            JobStopped: Too many failed.
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
            f"stopped: {failed} of {self._samples} samples failed ({kinds}), more than "
            f"--max-failure-share {self._max_share:g} allows; the last one, {last.key}: "
            f"{last.failure.message}. Fix the cause or allow more failures, and run the same "
            "command again to resume"
        )


class Captioner(Protocol):
    """A model or a service that captions images."""

    source: str
    """Caption source under which its captions are stored."""

    def settings(self) -> Mapping[str, Any]:
        """Everything that the captions depend on, as JSON types and without secrets."""

    def caption(self, samples: Iterable[Sample]) -> Iterator[list[Outcome]]:
        """Caption samples, reading them as needed.

        Each list holds the outcomes of one batch. Each sample has one outcome, in any order.

        Raises:
            JobStopped: No sample can be captioned.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """Input, output and limits of a job.

    Attributes:
        shards: Folder of shards, or one shard.
        output: Folder for the shards with captions.
        cleaning: How captions are cleaned.
        max_failure_share: Stop if a larger share of a run's samples fails.
        free_failures: Failures that never stop a run.
        price: Price of tokens; None for a local model.
        max_cost_usd: Stop if all runs of the job have cost more.
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
            raise ValueError(f"--output {self.output} holds the input shards; name another folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Progress of a job.

    Attributes:
        done: Finished shards, including those of earlier runs.
        busy: Shards that were skipped because another process works on them.
        shards: All shards.
        total: Results of all samples so far, including those of earlier runs.
    """

    done: int
    busy: int
    shards: int
    total: ShardReport


class CaptionJob:
    """Captions the shards of a folder."""

    def __init__(
        self,
        config: JobConfig,
        captioner: Captioner,
        *,
        on_progress: Callable[[JobProgress], None] = lambda progress: None,
    ) -> None:
        self._config = config
        self._captioner = captioner
        self._on_progress = on_progress
        self._folder = OutputFolder(path=config.output)
        self._budget = ErrorBudget(
            max_share=config.max_failure_share, free_failures=config.free_failures
        )

    def run(self) -> JobProgress:
        """Caption all samples that have no caption yet.

        Returns:
            The progress at the end.

        Raises:
            JobStopped: Too many failures, the cost limit, or a service that refuses every request.
            ValueError: The output folder has other settings, or a shard is damaged.
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
        progress = JobProgress(done=0, busy=0, shards=len(paths), total=ShardReport())
        for path in paths:
            try:
                self._caption_shard(path, progress)
                total = progress.total + read_report(self._folder.report(path))
                progress = replace(progress, done=progress.done + 1, total=total)
            except JournalBusy:
                progress = replace(progress, busy=progress.busy + 1)
            self._on_progress(progress)
        return progress

    def _caption_shard(self, path: Path, before: JobProgress) -> None:
        if self._folder.is_finished(path):
            return
        with Journal(self._folder.journal(path)) as journal:
            # Another process may have finished it between the check and the lock.
            if not self._folder.is_finished(path):
                self._fill(path, journal, before)
                self._finish(path, journal)
            journal.delete()

    def _fill(self, path: Path, journal: Journal, before: JobProgress) -> None:
        """Caption the samples that the journal lacks, and record each answer at once."""
        kept = settled(journal.outcomes)
        shard = make_report(kept.values())
        for outcomes in self._captioner.caption(uncaptioned(path, self._captioner.source, kept)):
            cleaned = [self._clean(outcome) for outcome in outcomes]
            journal.append(cleaned)
            shard += make_report(cleaned)
            total = before.total + shard
            self._on_progress(replace(before, total=total))
            self._check_cost(total)
            self._budget.spend(cleaned)

    def _finish(self, path: Path, journal: Journal) -> None:
        """Write the shard, then its report, which marks the shard as finished."""
        merge = CaptionMerge(shard=path, outcomes=journal.outcomes, source=self._captioner.source)
        write_shard(self._folder.shard(path), merge.samples())
        self._budget.spend(merge.unusable)
        outcomes = [*journal.outcomes.values(), *merge.unusable]
        report = make_report(outcomes, already=merge.already)
        write_json(self._folder.report(path), asdict(report))

    def _clean(self, outcome: Outcome) -> Outcome:
        if outcome.caption is None:
            return outcome
        caption = clean_caption(outcome.caption, self._config.cleaning)
        if caption:
            return replace(outcome, caption=caption)
        failure = Failure(kind="empty", message="the answer is empty after cleaning")
        return replace(outcome, caption=None, failure=failure)

    def _check_cost(self, total: ShardReport) -> None:
        price, most = self._config.price, self._config.max_cost_usd
        if price is not None and most is not None and price.of(total.usage) > most:
            raise JobStopped(
                f"stopped: the job has cost ${price.of(total.usage):.2f}, more than --max-cost "
                f"{most:g}; run the command with a higher limit to resume"
            )


def ask_consent(
    estimate: CostEstimate,
    *,
    spent_usd: float,
    max_cost_usd: float | None,
    is_agreed: bool,
    confirm: Callable[[], bool] | None,
) -> None:
    """Check that a job may spend money: it stays below a limit, or the user agreed.

    Args:
        estimate: Cost of the samples that are left.
        spent_usd: Cost of the job's earlier runs.
        max_cost_usd: Limit for all runs of the job; None for no limit.
        is_agreed: Whether the command line agrees (--yes).
        confirm: Asks the user; None without a terminal.

    Raises:
        ValueError: The job may not start; the message says what would allow it.
    """
    if max_cost_usd is not None:
        at_most_usd = spent_usd + estimate.at_most_usd
        if at_most_usd > max_cost_usd:
            earlier = f", of which ${spent_usd:,.2f} is already spent" if spent_usd else ""
            raise ValueError(
                f"the job may cost ${at_most_usd:,.2f}{earlier}, over --max-cost {max_cost_usd:g}; "
                "caption fewer shards, allow shorter answers, or raise the limit"
            )
        return
    if is_agreed or estimate.samples == 0:
        return
    if confirm is None:
        raise ValueError(
            "the cost needs consent, and there is no terminal: give --yes, or a limit by --max-cost"
        )
    if not confirm():
        raise ValueError("nothing was sent")


def pending_samples(config: JobConfig, source: str) -> Iterator[Sample]:
    """Samples that a run would caption now, read without a lock.

    Raises:
        FileNotFoundError: There are no shards.
        ValueError: A shard is damaged.
    """
    folder = OutputFolder(path=config.output)
    for path in shard_paths(config.shards):
        if not folder.is_finished(path):
            yield from uncaptioned(path, source, settled(read_journal(folder.journal(path))))


def earlier_usage(config: JobConfig) -> Usage:
    """Tokens of the job's earlier runs, read without a lock."""
    folder = OutputFolder(path=config.output)
    total = Usage()
    for path in shard_paths(config.shards):
        if folder.is_finished(path):
            total += read_report(folder.report(path)).usage
        else:
            total += total_usage(read_journal(folder.journal(path)).values())
    return total
