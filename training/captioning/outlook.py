"""What a job has still to do and what it has cost so far, read from its folders without a lock."""

from collections.abc import Iterator

from training.captioning.job import JobConfig
from training.captioning.journal import read_journal, settled
from training.captioning.outcome import Usage, total_usage
from training.captioning.output_folder import OutputFolder
from training.captioning.report import read_report
from training.captioning.shards import lacking, shard_paths
from training.data.shards.sample import Sample


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
