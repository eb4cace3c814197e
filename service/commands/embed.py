"""`tipserve embed`: embed many images, here, by a server, or on Ray."""

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from service.commands.program import add_engine_options, new_parser
from service.messages import IMAGE_OUTPUTS, EmbedImagesRequest

# Of `service.bulk.embedding.Dtype`.
DTYPES: Final = ("float32", "float16")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The job cannot be done as requested.
        SystemExit: The command line is wrong, or asks for help.
    """
    options = parse_options(list(arguments))
    # Imported here, because it needs the extra `cli`, and help needs none.
    embed: Callable[[argparse.Namespace], int] = importlib.import_module(
        "service.commands.embed_job"
    ).embed
    return embed(options)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        SystemExit: The command line is wrong, or asks for help.
    """
    parser = new_parser(
        "embed",
        "Write the embeddings of images as Parquet: one row for each image with key, source,\n"
        "height, width and the outputs. Images that cannot be read are skipped and listed in a\n"
        "second file. Run an interrupted command again to continue where it stopped.",
        (
            "photos/ -o photos.parquet",
            "'photos/**/*.jpg' -o photos.parquet --outputs cls1,patches --dtype float16",
            "photos/ -o photos.parquet --url grpc://localhost:8001",
            "shards/ -o embeddings/ --ray --workers 8 --gpus-per-worker 1",
            "rows.parquet -o out.parquet --image-column image --key-column id",
        ),
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders, patterns, Parquet files or .tar shards of WebDataset (one kind at a "
        "time); - reads a list of paths from standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a .parquet file, or a folder for one file per part",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete an existing output and start again"
    )
    parser.add_argument(
        "--allow-bad-items", action="store_true", help="exit with 0 even if images were skipped"
    )
    _add_computing(parser)
    _add_reading(parser)
    add_engine_options(parser)
    _add_ray(parser)
    return parser.parse_args(arguments)


def _add_computing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("embeddings")
    group.add_argument(
        "--outputs",
        default=",".join(EmbedImagesRequest.outputs),
        help=f"{', '.join(IMAGE_OUTPUTS)}; separated by commas (default: %(default)s)",
    )
    group.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="keep the length of embeddings (default: unit length)",
    )
    group.add_argument("--resolution", type=int, help="resize the short side to this many pixels")
    group.add_argument(
        "--fit",
        choices=("squash", "aspect"),
        default=EmbedImagesRequest.fit,
        help="resize to a square, or keep the aspect ratio (default: %(default)s)",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="number format in the output (default: %(default)s)",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--image-column",
        default="image",
        help="column of a Parquet input: images, paths, or structs of both (default: %(default)s)",
    )
    group.add_argument("--key-column", help="column of a Parquet input that becomes the key")
    group.add_argument(
        "--part-items",
        type=_positive,
        default=512,
        help="images of a part, which is the unit of writing and of resuming (default: "
        "%(default)s); a shard is always one part",
    )


def _add_ray(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many machines, by Ray")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on this cluster (default: the variable RAY_ADDRESS, else a new local cluster)",
    )
    group.add_argument(
        "--workers",
        type=_positive,
        default=1,
        help="processes that each load the model (default: %(default)s)",
    )
    group.add_argument(
        "--cpus-per-worker",
        type=float,
        default=1.0,
        help="CPU cores of a worker (default: %(default)s)",
    )
    group.add_argument(
        "--gpus-per-worker", type=float, default=0.0, help="GPUs of a worker (default: %(default)s)"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} given, at least 1 required")
    return number
