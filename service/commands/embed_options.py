"""The command line of `tipserve embed`."""

import argparse
from pathlib import Path
from typing import get_args

from service.bulk.job import JobOptions
from service.bulk.reading import Columns
from service.bulk.rows import Dtype
from service.commands.options import add_engine_options, new_parser, served_name
from service.engines.engine import EngineError
from service.messages import IMAGE_OUTPUTS, EmbedImagesRequest


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read a command line.

    Raises:
        SystemExit: It is wrong, or `--help`.
    """
    parser = new_parser(
        "embed",
        "Writes embeddings of images as Parquet: one row each with key, source, height, width\n"
        "and the outputs. What cannot be read or decoded is listed beside the output. A command\n"
        "that was interrupted goes on where it stopped when it is given again.",
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
        help="images, folders, patterns, Parquet files or .tar shards (not mixed); - reads a "
        "list from standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a file that ends in .parquet, or a folder that gets a file for each part",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew instead of going on or refusing"
    )
    parser.add_argument(
        "--allow-bad-items", action="store_true", help="exit with 0 also where some were bad"
    )
    _add_computing(parser)
    _add_reading(parser)
    add_engine_options(parser)
    _add_ray(parser)
    return parser.parse_args(arguments)


def _add_computing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is computed")
    group.add_argument(
        "--outputs",
        default=",".join(EmbedImagesRequest.outputs),
        help=f"of {', '.join(IMAGE_OUTPUTS)}, with commas between (default: %(default)s)",
    )
    group.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="leave embeddings as the model has them; else they have unit length",
    )
    group.add_argument("--resolution", type=int, help="short side in pixels, as the model sees it")
    group.add_argument("--fit", choices=("squash", "aspect"), default=EmbedImagesRequest.fit)
    group.add_argument("--dtype", choices=get_args(Dtype), default=get_args(Dtype)[0])


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is read and split")
    group.add_argument(
        "--image-column",
        default=Columns().image,
        help="of Parquet: images, paths, or structs of both (default: %(default)s)",
    )
    group.add_argument("--key-column", help="of Parquet: what becomes the key")
    group.add_argument(
        "--part-items",
        type=_positive,
        default=512,
        help="images that are written, and computed anew, together (default: %(default)s); a "
        "shard is always one part",
    )


def _add_ray(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on Ray, which reads, decodes and embeds on many machines")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="a cluster; without an address the one of RAY_ADDRESS, or one that is started here",
    )
    group.add_argument(
        "--workers", type=_positive, default=1, help="copies of the model (default: %(default)s)"
    )
    group.add_argument("--cpus-per-worker", type=float, default=1.0, help="(default: %(default)s)")
    group.add_argument("--gpus-per-worker", type=float, default=0.0, help="(default: %(default)s)")


def job_options(options: argparse.Namespace) -> JobOptions:
    """What is computed.

    Raises:
        EngineError: The outputs cannot be read.
    """
    names = tuple(dict.fromkeys(n.strip() for n in options.outputs.split(",") if n.strip()))
    unknown = [name for name in names if name not in IMAGE_OUTPUTS]
    if unknown or not names:
        known = ", ".join(IMAGE_OUTPUTS)
        raise EngineError(f"--outputs takes {known}, with commas between, not {options.outputs}.")
    request = EmbedImagesRequest(
        images=(),
        model=served_name(options),
        outputs=names,
        normalize=options.normalize,
        resolution=options.resolution,
        fit=options.fit,
    )
    return JobOptions(
        request=request,
        dtype=options.dtype,
        columns=Columns(image=options.image_column, key=options.key_column),
        part_items=options.part_items,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
