"""`tipserve search`: the most similar images of a file that `tipserve embed` wrote.

Shape legend: D width.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from service.messages import EmbedImagesRequest, EmbedTextsRequest, FloatArray
from tipserve_cli.commands.files import read_image
from tipserve_cli.commands.model_options import Model, ModelOptions, opened_engine, refusals_of
from tipserve_cli.commands.program import DONE
from tipserve_cli.engines.engine import Engine, EngineError, find_model


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of the command, apart from those of the model."""

    image: Annotated[str | None, Parameter(help="Find images similar to this file.")] = None
    top: Annotated[int, Parameter(help="Number of images.", validator=validators.Number(gte=1))] = (
        10
    )
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON.", show_default=False)] = (
        False
    )
    column: Annotated[str, Parameter(help="Column with the embeddings: cls1 or cls2.")] = "cls1"


def run(
    file: Annotated[
        Path, Parameter(help="A .parquet file, or a folder of parts, from `tipserve embed`.")
    ],
    text: Annotated[str | None, Parameter(help="Words to find.")] = None,
    /,
    *,
    options: Annotated[SearchOptions, Parameter(name="*")] = SearchOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The file cannot be searched, or the query cannot be embedded.
    """
    if (text is None) == (options.image is None):
        raise EngineError("Give words, or --image with an image file.")
    # Imported here, because it needs the extra `cli`, and help needs none.
    from tipserve_cli.bulk.search import EmbeddedImages  # noqa: PLC0415

    images = EmbeddedImages(file, options.column)
    with opened_engine(model) as engine:
        images.check_model(find_model(engine, model.served_name))
        if text is None:
            embedded = images.record.get("options", {})
            query_D = _embed_image(engine, options, embedded, model.served_name)
        else:
            request = EmbedTextsRequest(texts=(text,), model=model.served_name)
            query_D = engine.embed_texts(request).result()[0]
    found = images.most_similar(query_D, options.top)
    if options.as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return DONE
    for one in found:
        print(f"{one.score:.4f}  {one.key}")
    return DONE


def _embed_image(
    engine: Engine, options: SearchOptions, embedded: Mapping[str, Any], name: str | None
) -> FloatArray:
    """Embed the image of a query [D], with the size of the embedded ones."""
    assert options.image is not None
    request = EmbedImagesRequest(
        images=(read_image(options.image),),
        model=name,
        outputs=(options.column,),
        resolution=embedded.get("resolution"),
        fit=embedded.get("fit", EmbedImagesRequest.fit),
    )
    with refusals_of(options.image):
        return engine.embed(request).result()[options.column]
