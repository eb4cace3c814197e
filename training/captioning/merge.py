"""Puts the captions of a finished journal into its shard's samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.captioning.outcome import Failure, Outcome
from training.captioning.shards import read_shard
from training.data.shards.sample import BadSample, Sample


@dataclass(slots=True, kw_only=True)
class Merge:
    """One pass over a shard; the counts are right once `samples` has been read to its end.

    Attributes:
        shard: The shard without the captions.
        outcomes: What came of its samples, by key.
        source: What the captions are called.
        already: Samples that had a caption of this source.
        unusable: Failures of entries that are no samples; the new shard leaves them out.
    """

    shard: Path
    outcomes: Mapping[str, Outcome]
    source: str
    already: int = 0
    unusable: list[Outcome] = field(default_factory=list)

    def samples(self) -> Iterator[Sample]:
        """Read the shard's samples, each with its caption where it has one.

        Raises:
            ValueError: The outcomes are not this shard's.
        """
        rest = dict(self.outcomes)
        for key, sample in read_shard(self.shard):
            outcome = rest.pop(key, None)
            if isinstance(sample, BadSample):
                failure = Failure(kind="sample", message=str(sample))
                self.unusable.append(Outcome(key=key, failure=failure))
            elif outcome is not None and outcome.caption is not None:
                captions = {**sample.captions, self.source: outcome.caption}
                yield replace(sample, captions=captions)
            elif outcome is not None or self.source in sample.captions:
                self.already += outcome is None
                yield sample
            else:
                raise ValueError(self._changed(key))
        if rest:
            raise ValueError(self._changed(next(iter(rest))))

    def _changed(self, key: str) -> str:
        return (
            f"{self.shard} is not what it was when its captioning began: {key} came or went; "
            "delete its journal in the output folder to begin it again"
        )
