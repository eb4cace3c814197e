"""`tipserve features`: the patch embeddings of an image, or a drawing of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from model.preprocess import Fit
from tipserve_cli.engine import UserError, refusals_of
from tipserve_cli.files import check_output, read_image, write_output
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Input,
    Model,
    ModelOptions,
    as_help,
    opened_engine,
)
from tipserve_cli.program import DONE
from tipserve_client import Client

SUFFIXES: Final = (".npy", ".png")


@as_help
@dataclass(frozen=True, kw_only=True)
class FeaturesOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        output: A .npy or .png file; - writes a .npy, or with --kind a .png, to standard output.
        kind: For .png: three principal components as colours, the first component, or groups of
            similar patches. Default: colors.
        features: patches, or values, which compare with texts.
        resolution: Resize the short side to this many pixels.
        fit: Keep the aspect ratio, or resize to a square.
    """

    output: Annotated[Path, OUTPUT_OR_PIPE]
    kind: Literal["colors", "component", "groups"] | None = None
    features: Literal["values", "patches"] = "patches"
    resolution: int | None = None
    fit: Fit = "aspect"


@as_help
def run(
    image: Input,
    /,
    *,
    options: Annotated[FeaturesOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        image: An image file, or - for standard input.
        options: Of the command.
        model: Here, or on a server.
    """
    piped = ".npy" if options.kind is None else ".png"
    suffix = check_output(options.output, SUFFIXES, piped=piped)
    if suffix == ".npy" and options.kind is not None:
        raise UserError("--kind draws an image; give an --output that ends in .png.")
    encoded = read_image(image)
    compute = _draw if suffix == ".png" else _embed
    sized = {"model": model.served_name, "resolution": options.resolution, "fit": options.fit}
    with opened_engine(model, heads=()) as engine, refusals_of(image):
        content = compute(engine.client, encoded, options, sized)
    write_output(options.output, content)
    return DONE


def _draw(client: Client, image: bytes, options: FeaturesOptions, sized: dict[str, Any]) -> bytes:
    from tipserve_cli.local import encode_view_png  # noqa: PLC0415 - slow to import

    kind = options.kind or "colors"
    (drawn,) = client.features(image, kind=kind, features=options.features, **sized)
    return encode_view_png(drawn, kind)


def _embed(client: Client, image: bytes, options: FeaturesOptions, sized: dict[str, Any]) -> bytes:
    from tipserve_cli.local import encode_npy  # noqa: PLC0415 - slow to import

    (found,) = client.embed_images(image, outputs=options.features, **sized)
    return encode_npy(getattr(found, options.features))
