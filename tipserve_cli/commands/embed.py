"""`tipserve embed`: embed many images, here, by a server, or on Ray."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from model.preprocess import Fit
from service.messages import IMAGE_OUTPUTS, EmbedImagesRequest
from tipserve_cli.commands.model_options import Model, ModelOptions
from tipserve_cli.commands.program import reject_options

EMBEDDINGS = "Embeddings"
INPUTS = "Inputs"
RAY = "Many machines, by Ray"
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Options of the command, apart from those of the model."""

    # No Path, which would make one slash of the two in s3://.
    output: Annotated[
        str,
        Parameter(
            name=("--output", "-o"),
            help="A .parquet file, or a folder for one file per part; a folder may be the URL of "
            "an object store, such as s3://bucket/embeddings (extra `stores`).",
        ),
    ]
    overwrite: Annotated[
        bool, Parameter(help="Delete an existing output and start again.", show_default=False)
    ] = False
    allow_bad_items: Annotated[
        bool, Parameter(help="Exit with 0 even if images were skipped.", show_default=False)
    ] = False
    outputs: Annotated[
        str,
        Parameter(help=f"{', '.join(IMAGE_OUTPUTS)}; separated by commas.", group=EMBEDDINGS),
    ] = ",".join(EmbedImagesRequest.outputs)
    normalize: Annotated[
        bool,
        Parameter(
            negative="--no-normalize",
            help="Give embeddings unit length, or leave their length as it is.",
            group=EMBEDDINGS,
        ),
    ] = EmbedImagesRequest.normalize
    resolution: Annotated[
        int | None,
        Parameter(help="Resize the short side to this many pixels.", group=EMBEDDINGS),
    ] = None
    fit: Annotated[
        Fit, Parameter(help="Resize to a square, or keep the aspect ratio.", group=EMBEDDINGS)
    ] = EmbedImagesRequest.fit
    # Those of `tipserve_cli.bulk.embedding.Dtype`, which needs pyarrow.
    dtype: Annotated[
        Literal["float32", "float16"],
        Parameter(help="Number format in the output.", group=EMBEDDINGS),
    ] = "float32"
    image_column: Annotated[
        str,
        Parameter(
            help="Column of a Parquet input: images, paths, or structs of both.", group=INPUTS
        ),
    ] = "image"
    key_column: Annotated[
        str | None,
        Parameter(help="Column of a Parquet input that becomes the key.", group=INPUTS),
    ] = None
    part_items: Annotated[
        Positive,
        Parameter(
            help="Images of a part, which is the unit of writing and of resuming; a shard is "
            "always one part.",
            group=INPUTS,
        ),
    ] = 512
    ray: Annotated[
        str | bool | None,
        Parameter(
            help="Run on the cluster with this address. Without one: the variable RAY_ADDRESS, "
            "else a new local cluster.",
            metavar="[ADDRESS]",
            group=RAY,
        ),
    ] = None
    workers: Annotated[
        Positive, Parameter(help="Processes that each load the model.", group=RAY)
    ] = 1
    cpus_per_worker: Annotated[float, Parameter(help="CPU cores of a worker.", group=RAY)] = 1.0
    gpus_per_worker: Annotated[float, Parameter(help="GPUs of a worker.", group=RAY)] = 0.0


def run(
    *paths: Annotated[
        str,
        Parameter(
            help="Images, folders, patterns, Parquet files or .tar shards of WebDataset (one kind "
            "at a time), also as URLs of an object store such as s3://bucket/photos (extra "
            "`stores`); - reads a list of paths from standard input.",
            allow_leading_hyphen=True,
            validator=reject_options,
            required=True,
        ),
    ],
    options: Annotated[EmbedOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The job cannot be done as requested.
    """
    # Imported here, because it needs the extra `cli`, and help needs none.
    from tipserve_cli.commands.embed_job import embed  # noqa: PLC0415

    return embed(paths, options, model)
