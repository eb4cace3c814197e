"""`tipserve depth` and `tipserve normals`: maps of images, as numbers or drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from model.preprocess import Fit
from tipserve_cli.engine import UserError, refusals_of
from tipserve_cli.files import check_one_image, check_output, is_folder, read_image, write_output
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Flag,
    Input,
    Model,
    ModelOptions,
    as_help,
    opened_engine,
)
from tipserve_cli.program import DONE
from tipserve_client import Client

Task = Literal["depth", "normals"]
MapFormat = Literal["colors", "millimetres", "npy"]
SUFFIXES: Final = (".png", ".npy")


@as_help
@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        output: A .png or .npy file, or - for standard output; a folder for several images.
        format: colors: a PNG to look at; millimetres: depth as a grey PNG of 16 bits; npy: float32,
            depth in metres. Default: npy for an output that ends so, else colors.
        resolution: Resize the short side to this many pixels.
        fit: Resize to a square, or keep the aspect ratio.
        overwrite: Start a stopped job again, of several images.
    """

    # No Path, which would make one slash of the two in s3://.
    output: Annotated[str, OUTPUT_OR_PIPE]
    format: MapFormat | None = None
    resolution: int | None = None
    fit: Fit = "squash"
    overwrite: Flag = False


@as_help
def depth(
    *images: Annotated[Input, Parameter(required=True)],
    options: Annotated[MapOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        images: An image file, or - for standard input; for a folder as output also folders,
            patterns, and - for a list of paths.
        options: Of the command.
        model: Here, or on a server.
    """
    return _write("depth", images, options, model)


@as_help
def normals(
    *images: Annotated[Input, Parameter(required=True)],
    options: Annotated[MapOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        images: An image file, or - for standard input; for a folder as output also folders,
            patterns, and - for a list of paths.
        options: Of the command.
        model: Here, or on a server.
    """
    return _write("normals", images, options, model)


def _write(kind: Task, images: Sequence[str], options: MapOptions, model: ModelOptions) -> int:
    is_many = is_folder(options.output)
    suffix = ".npy" if options.format == "npy" else ".png"
    if not is_many:
        found = check_output(Path(options.output), SUFFIXES, piped=suffix)
        if options.format is not None and found != suffix:
            raise UserError(f"--format {options.format} needs an --output that ends in {suffix}.")
        suffix = found
    form = options.format or ("npy" if suffix == ".npy" else "colors")
    if form == "millimetres" and kind == "normals":
        raise UserError("--format millimetres is for depth; choose colors or npy.")
    request = {"resolution": options.resolution, "fit": options.fit}

    def render(client: Client, image: bytes) -> bytes:
        (found,) = getattr(client, kind)(image, model=model.served_name, **request)
        return _encode(kind, form, found)

    if is_many:
        from tipserve_cli.bulk.image_files import ImageFilesTask, write_image_files  # noqa: PLC0415

        task = ImageFilesTask(
            request={**request, "task": kind, "format": form},
            model=model.served_name,
            images=images,
            render=render,
            place=options.output,
            ending=suffix,
        )
        return write_image_files(task, model, overwrite=options.overwrite)
    named = check_one_image(images)
    image = read_image(named)
    with opened_engine(model, heads=(kind,)) as engine, refusals_of(named):
        content = render(engine.client, image)
    write_output(Path(options.output), content)
    return DONE


def _encode(kind: Task, form: MapFormat, found: Any) -> bytes:
    from tipserve_cli import local  # noqa: PLC0415 - slow to import

    if form == "npy":
        return local.encode_npy(found)
    if kind == "normals":
        return local.encode_normals_png(found)
    encode = local.encode_millimetres_png if form == "millimetres" else local.encode_depth_png
    return encode(found)
