"""Search in the embeddings that a job wrote.

Shape legend: N rows, D width.
"""

import heapq
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.segmentation import l2_normalize
from service.messages import FloatArray
from tipserve_cli.bulk.output import METADATA_KEY
from tipserve_cli.engines.engine import ModelSummary, UserError

ROWS_AT_ONCE: Final = 4096


class SearchError(UserError):
    """The embeddings cannot be searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An image, and the cosine of its embedding and the query."""

    score: float
    key: str
    source: str


class EmbeddedImages:
    """A Parquet file of a job, or its folder of parts.

    Args:
        place: The file or folder.
        column: Holds the embeddings.

    Raises:
        SearchError: There is no such file or column.
    """

    def __init__(self, place: Path, column: str) -> None:
        self._place, self._column = place, column
        self._files = sorted(place.glob("part-*.parquet")) if place.is_dir() else [place]
        if not self._files:
            raise SearchError(f"{place} has no parts; give the output of `tipserve embed`.")
        try:
            schema = pq.read_schema(self._files[0])
        except (OSError, ValueError) as error:
            raise SearchError(f"{place} cannot be read as Parquet.") from error
        if not {"key", "source"} <= set(schema.names):
            raise SearchError(f"{place} is no output of `tipserve embed`.")
        vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
        if column not in vectors:
            raise SearchError(
                f"{place} has no embeddings {column!r}; choose a --column from "
                f"{', '.join(vectors) or 'none'}."
            )
        self._width = schema.field(column).type.list_size
        self.record: dict[str, Any] = {}
        with suppress(KeyError, TypeError, ValueError):
            self.record = json.loads(schema.metadata[METADATA_KEY])

    def check_model(self, model: ModelSummary) -> None:
        """Check that the embeddings are of this model, because those of others do not compare.

        Raises:
            SearchError: They are of another one.
        """
        before = self.record.get("model", {})
        is_other = before.get("fingerprint", model.fingerprint) != model.fingerprint
        if is_other or self._width != model.embed_dim:
            name = before.get("name", "another model")
            raise SearchError(
                f"{self._place} was embedded by {name}, and the query would be by {model.name}; "
                "choose the same by --model."
            )

    def most_similar(self, query_D: FloatArray, num_images: int) -> list[Found]:
        """The images whose embeddings have the greatest cosines, the best first."""
        unit_D = l2_normalize(query_D)
        return heapq.nlargest(
            num_images, self._scored(unit_D, num_images), key=lambda found: found.score
        )

    def _scored(self, unit_D: FloatArray, num_images: int) -> Iterator[Found]:
        """The best images of each batch of rows."""
        columns = ["key", "source", self._column]
        for file in self._files:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=columns):
                flat = batch.column(self._column).flatten().to_numpy(zero_copy_only=False)
                rows_ND = flat.astype(np.float32).reshape(batch.num_rows, self._width)
                scores_N = l2_normalize(rows_ND) @ unit_D
                for row in np.argsort(-scores_N, kind="stable")[:num_images].tolist():
                    key, source = batch.column("key")[row], batch.column("source")[row]
                    yield Found(score=float(scores_N[row]), key=key.as_py(), source=source.as_py())
