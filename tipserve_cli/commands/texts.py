"""`tipserve texts`: embed texts."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from cyclopts import Parameter

from tipserve_cli.engine import UsageError
from tipserve_cli.files import check_output, read_lines, write_output
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Input,
    Model,
    ModelOptions,
    as_help,
    opened_engine,
)
from tipserve_cli.program import DONE
from tipserve_client.results import FloatArray

SUFFIXES: Final = (".json", ".npy", ".parquet")
# Texts of a request; every server takes this many unless it is configured to take fewer.
TEXTS_AT_ONCE: Final = 256


@as_help
@dataclass(frozen=True, kw_only=True)
class TextsOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        file: A file with a text in each line.
        output: A .npy, .json or .parquet file, or - for JSON on standard output.
        templates: tcl: the mean of each text in several sentences, as for class names.
        normalize: Give embeddings unit length, or leave their length as it is.
    """

    file: Path | None = None
    output: Annotated[Path, OUTPUT_OR_PIPE] = Path("-")
    templates: Literal["none", "tcl"] = "none"
    normalize: Annotated[bool, Parameter(negative="--no-normalize")] = True


@as_help
def run(
    *texts: Input,
    options: Annotated[TextsOptions, Parameter(name="*")] = TextsOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        texts: Texts, or - for the lines of standard input.
        options: Of the command.
        model: Here, or on a server.
    """
    output, file = options.output, options.file
    suffix = check_output(output, SUFFIXES, piped=".json")
    if (file is None) == (not texts):
        raise UsageError("Give texts, or --file with a text in each line.")
    if file is not None or texts == ("-",):
        texts = tuple(read_lines(file or Path("-")))
    parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
    asked: dict[str, Any] = {
        "model": model.served_name,
        "templates": options.templates,
        "normalize": options.normalize,
    }
    with opened_engine(model, heads=()) as engine:
        found = [engine.client.embed_texts(part, **asked) for part in parts]
    content = _encode(suffix, texts, np.concatenate(found))
    write_output(output, content)
    if str(output) != "-":
        print(f"{output}: {len(texts)} texts")
    return DONE


def _encode(suffix: str, texts: Sequence[str], vectors_TD: FloatArray) -> bytes:
    stream = io.BytesIO()
    if suffix == ".json":
        pairs = zip(texts, vectors_TD.tolist(), strict=True)
        rows = [json.dumps({"text": text, "embedding": vector}) for text, vector in pairs]
        return ("[" + ",\n".join(rows) + "]\n").encode()
    if suffix == ".npy":
        np.save(stream, vectors_TD, allow_pickle=False)
        return stream.getvalue()
    # Imported here, because they are of the extra `cli`, which other formats do not need.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    flat = pa.array(vectors_TD.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, vectors_TD.shape[1])
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "embedding": vectors}), stream)
    return stream.getvalue()
