"""`tipserve depth` and `tipserve normals`: maps of images, as numbers or drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from model.preprocess import Fit
from tipserve_cli.engine import UsageError
from tipserve_cli.files import check_output, is_folder
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Flag,
    Input,
    Model,
    ModelOptions,
    Positive,
    as_help,
)
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
    resolution: Positive | None = None
    fit: Fit = "squash"
    overwrite: Flag = False


def _command(kind: Task) -> Callable[..., int]:
    @as_help
    def run(
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
        from tipserve_cli.bulk import lines  # noqa: PLC0415 - slow to import

        form, suffix = _form(kind, options)
        request = {"resolution": options.resolution, "fit": options.fit}

        def render(client: Client, image: bytes) -> bytes:
            (found,) = getattr(client, kind)(image, model=model.served_name, **request)
            return _encode(kind, form, found)

        task = lines.ImageFilesTask(
            request={**request, "task": kind, "format": form},
            images=images,
            render=render,
            output=options.output,
            ending=suffix,
        )
        return lines.write_image_files(task, model, (kind,), overwrite=options.overwrite)

    return run


depth, normals = _command("depth"), _command("normals")


def _form(kind: Task, options: MapOptions) -> tuple[MapFormat, str]:
    """What is written, and the ending of its files."""
    suffix = ".npy" if options.format == "npy" else ".png"
    if not is_folder(options.output):
        found = check_output(Path(options.output), SUFFIXES, piped=suffix)
        if options.format is not None and found != suffix:
            raise UsageError(f"--format {options.format} needs an --output that ends in {suffix}.")
        suffix = found
    form = options.format or ("npy" if suffix == ".npy" else "colors")
    if form == "millimetres" and kind == "normals":
        raise UsageError("--format millimetres is for depth; choose colors or npy.")
    return form, suffix


def _encode(kind: Task, form: MapFormat, found: Any) -> bytes:
    from tipserve_cli import local  # noqa: PLC0415 - slow to import

    if form == "npy":
        return local.masks.encode_npy(found)
    if kind == "normals":
        return local.maps.encode_normals_png(found)
    encode = (
        local.maps.encode_millimetres_png if form == "millimetres" else local.maps.encode_depth_png
    )
    return encode(found)
