"""What a run asks of its data, whatever kind it is."""

from collections.abc import Sequence
from typing import Any, Protocol

from transformers import Tipsv2Tokenizer

from training.data.shards.batches import RunShare
from training.evaluate.sets import SegmentationBenchmark
from training.trainer import BatchSource


class Inputs(Protocol):
    """Opened data of one run."""

    def describe(self) -> Sequence[str]:
        """Say, a line each, what there is and what each loss will use of it."""

    def tokenizer_texts(self) -> list[str]:
        """Texts that a tokenizer is trained on; what comes often becomes few tokens."""

    def warm_up_texts(self) -> list[str]:
        """Distinct texts that a text tower is warmed up on."""

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> BatchSource:
        """Make the batches of a run, one rank's share of them."""

    def benchmarks(self) -> Sequence[SegmentationBenchmark]:
        """What the run is scored on while it trains; nothing where nothing is known."""

    def facts(self) -> dict[str, Any]:
        """What identifies the data in run.json."""
