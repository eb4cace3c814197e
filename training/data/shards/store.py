"""Where batches get samples from: any sample by its shard and row."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.data.shards.sample import Sample
from training.data.shards.summary import DataSummary


class ImageStore(Protocol):
    """Samples in shards, each within reach. It is pickled into worker processes."""

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples in each shard."""

    def read(self, shard: int, row: int) -> Sample:
        """Read a sample.

        Raises:
            BadSample: It is there, but of no use.
            OSError: The storage failed; another attempt may succeed.
        """

    def name(self, shard: int, row: int) -> str:
        """Where a sample is, for a list of broken ones."""

    def summary(self) -> DataSummary:
        """What the data set holds."""
