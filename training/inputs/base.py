"""The interface of a run's data."""

from collections.abc import Sequence
from typing import Any, Protocol

from transformers import Tipsv2Tokenizer

from training.data.batch import RunShare
from training.evaluate.ranking import ClassificationBenchmark
from training.evaluate.sets import SegmentationBenchmark
from training.trainer import BatchSource


class Inputs(Protocol):
    """Opened data of one run."""

    def describe(self) -> Sequence[str]:
        """Lines that describe the data and what each loss uses of it."""

    def tokenizer_texts(self) -> list[str]:
        """Texts to train a tokenizer on; frequent words get few tokens."""

    def warm_up_texts(self) -> list[str]:
        """Distinct texts for the warm-up of a text tower."""

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> BatchSource:
        """One rank's share of the batches of a run."""

    def benchmarks(self) -> Sequence[SegmentationBenchmark | ClassificationBenchmark]:
        """Development sets that the run is scored on during training; may be empty."""

    def facts(self) -> dict[str, Any]:
        """Identification of the data in run.json."""
