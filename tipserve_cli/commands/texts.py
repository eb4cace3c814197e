"""`tipserve texts`: embed texts."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from cyclopts import Parameter

from service.messages import TEXT_TEMPLATES, EmbedTextsRequest, FloatArray, TemplateSet
from service.outputs.masks import encode_npy
from tipserve_cli.commands.files import check_output, read_lines, write_file
from tipserve_cli.commands.model_options import Model, ModelOptions, opened_engine
from tipserve_cli.commands.program import DONE, reject_options
from tipserve_cli.engines.engine import Engine, EngineError

SUFFIXES: Final = (".json", ".npy", ".parquet")
# Texts of a request; every server takes this many unless it is configured to take fewer.
TEXTS_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class TextsOptions:
    """Options of the command, apart from those of the model."""

    file: Annotated[Path | None, Parameter(help="A file with a text in each line.")] = None
    output: Annotated[
        Path | None,
        Parameter(
            name=("--output", "-o"),
            help="A .npy, .json or .parquet file. Default: JSON on standard output.",
        ),
    ] = None
    templates: Annotated[
        TemplateSet,
        Parameter(help="tcl: the mean of each text in several sentences, as for class names."),
    ] = TEXT_TEMPLATES
    normalize: Annotated[
        bool,
        Parameter(
            negative="--no-normalize",
            help="Give embeddings unit length, or leave their length as it is.",
        ),
    ] = EmbedTextsRequest.normalize


def run(
    *texts: Annotated[
        str,
        Parameter(
            help="Texts, or - for the lines of standard input.",
            allow_leading_hyphen=True,
            validator=reject_options,
        ),
    ],
    options: Annotated[TextsOptions, Parameter(name="*")] = TextsOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The texts cannot be embedded or written.
    """
    output, file = options.output, options.file
    suffix = ".json" if output is None else check_output(output, SUFFIXES)
    if (file is None) == (not texts):
        raise EngineError("Give texts, or --file with a text in each line.")
    if file is not None or texts == ("-",):
        texts = tuple(read_lines(file or Path("-")))
    request = EmbedTextsRequest(
        texts=(),
        model=model.served_name,
        templates=options.templates,
        normalize=options.normalize,
    )
    with opened_engine(model) as engine:
        vectors_TD = embed_texts(engine, request, texts)
    content = _encode(suffix, texts, vectors_TD)
    if output is None:
        print(content.decode(), end="")
    else:
        write_file(output, content)
        print(f"{output}: {len(texts)} texts")
    return DONE


def embed_texts(engine: Engine, request: EmbedTextsRequest, texts: Sequence[str]) -> FloatArray:
    """Embed texts [T, D] by several requests.

    Raises:
        EngineError: They cannot be embedded.
    """
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    parts = (tuple(texts[start : start + TEXTS_AT_ONCE]) for start in starts)
    answers = [engine.embed_texts(replace(request, texts=part)) for part in parts]
    return np.concatenate([answer.result() for answer in answers])


def _encode(suffix: str, texts: Sequence[str], vectors_TD: FloatArray) -> bytes:
    if suffix == ".npy":
        return encode_npy(vectors_TD)
    if suffix == ".parquet":
        return _encode_parquet(texts, vectors_TD)
    pairs = zip(texts, vectors_TD.tolist(), strict=True)
    rows = [json.dumps({"text": text, "embedding": vector}) for text, vector in pairs]
    return ("[" + ",\n".join(rows) + "]\n").encode()


def _encode_parquet(texts: Sequence[str], vectors_TD: FloatArray) -> bytes:
    # Imported here, because they are of the extra `cli`, which other formats do not need.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    flat = pa.array(vectors_TD.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, vectors_TD.shape[1])
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "embedding": vectors}), stream)
    return stream.getvalue()
