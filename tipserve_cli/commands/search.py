"""`tipserve search`: the most similar images of a file that `tipserve embed` wrote.

Shape legend: N rows, D width.
"""

import heapq
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from cyclopts import Parameter

from model.segmentation import l2_normalize
from tipserve_cli.engine import Engine, UserError, refusals_of
from tipserve_cli.files import read_image
from tipserve_cli.model_options import AsJson, Model, ModelOptions, Positive, as_help, opened_engine
from tipserve_cli.program import DONE
from tipserve_client import ModelInfo
from tipserve_client.results import FloatArray

ROWS_AT_ONCE: Final = 4096


@as_help
@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        image: Find images similar to this file.
        top: Number of images.
        as_json: Print JSON.
        column: Column with the embeddings: cls1 or cls2.
    """

    image: str | None = None
    top: Positive = 10
    as_json: AsJson = False
    column: str = "cls1"


@as_help
def run(
    file: Path,
    text: str | None = None,
    /,
    *,
    options: Annotated[SearchOptions, Parameter(name="*")] = SearchOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        file: A .parquet file, or a folder of parts, from `tipserve embed`.
        text: Words to find.
        options: Of the command.
        model: Here, or on a server.
    """
    if (text is None) == (options.image is None):
        raise UserError("Give words, or --image with an image file.")
    images = EmbeddedImages(file, options.column)
    with opened_engine(model, heads=()) as engine:
        images.check_model(engine.find_model(model.served_name))
        if text is None:
            query_D = _embed_image(engine, options, images.record, model.served_name)
        else:
            asked: dict[str, Any] = {"model": model.served_name}
            query_D = engine.client.embed_texts([text], **asked)[0]
    found = images.most_similar(query_D, options.top)
    if options.as_json:
        rows = [{"score": score, "key": key, "source": source} for score, key, source in found]
        print(json.dumps(rows, indent=2))
        return DONE
    for score, key, _ in found:
        print(f"{score:.4f}  {key}")
    return DONE


def _embed_image(
    engine: Engine, options: SearchOptions, record: dict[str, Any], name: str | None
) -> FloatArray:
    """Embed the image of a query [D], with the size of the embedded ones."""
    assert options.image is not None
    embedded = record.get("options", {})
    asked: dict[str, Any] = {
        "model": name,
        "outputs": options.column,
        "resolution": embedded.get("resolution"),
        "fit": embedded.get("fit"),
    }
    with refusals_of(options.image):
        (found,) = engine.client.embed_images(read_image(options.image), **asked)
    query_D: FloatArray = getattr(found, options.column)
    return query_D


class EmbeddedImages:
    """A Parquet file of a job, or its folder of parts.

    Args:
        place: The file or folder.
        column: Holds the embeddings.
    """

    def __init__(self, place: Path, column: str) -> None:
        # Imported here, because they are of the extra `cli`, and help needs none.
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._place, self._column = place, column
        self._files = sorted(place.glob("part-*.parquet")) if place.is_dir() else [place]
        if not self._files:
            raise UserError(f"{place} has no parts; give the output of `tipserve embed`.")
        try:
            schema = pq.read_schema(self._files[0])
        except (OSError, ValueError) as error:
            raise UserError(f"{place} cannot be read as Parquet.") from error
        if not {"key", "source"} <= set(schema.names):
            raise UserError(f"{place} is no output of `tipserve embed`.")
        vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
        if column not in vectors:
            raise UserError(
                f"{place} has no embeddings {column!r}; choose a --column from "
                f"{', '.join(vectors) or 'none'}."
            )
        self._width = schema.field(column).type.list_size
        self.record: dict[str, Any] = {}
        with suppress(KeyError, TypeError, ValueError):
            self.record = json.loads(schema.metadata[b"tipserve"])

    def check_model(self, model: ModelInfo) -> None:
        """Check that the embeddings are of this model, because those of others do not compare."""
        before = self.record.get("model", {})
        is_other = before.get("fingerprint", model.package_digest) != model.package_digest
        if is_other or self._width != model.embed_dim:
            name = before.get("name", "another model")
            raise UserError(
                f"{self._place} was embedded by {name}, and the query would be by {model.name}; "
                "choose the same by --model."
            )

    def most_similar(self, query_D: FloatArray, num_images: int) -> list[tuple[float, str, str]]:
        """Cosine, key and source of the images with the greatest cosines, the best first."""
        scored = self._scored(l2_normalize(query_D), num_images)
        return heapq.nlargest(num_images, scored, key=lambda found: found[0])

    def _scored(self, unit_D: FloatArray, num_images: int) -> Iterator[tuple[float, str, str]]:
        """The best images of each batch of rows."""
        import pyarrow.parquet as pq  # noqa: PLC0415

        columns = ["key", "source", self._column]
        for file in self._files:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=columns):
                flat = batch.column(self._column).flatten().to_numpy(zero_copy_only=False)
                rows_ND = flat.astype(np.float32).reshape(batch.num_rows, self._width)
                scores_N = l2_normalize(rows_ND) @ unit_D
                for row in np.argsort(-scores_N, kind="stable")[:num_images].tolist():
                    key, source = batch.column("key")[row], batch.column("source")[row]
                    yield float(scores_N[row]), key.as_py(), source.as_py()
