"""`tipserve features`: the patch embeddings of an image, or a drawing of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from tipserve_cli.engine import UserError, refusals_of
from tipserve_cli.files import check_output, read_image, write_file
from tipserve_cli.model_options import AspectFit, Model, ModelOptions, Resolution, opened_engine
from tipserve_cli.program import DONE, reject_options
from tipserve_client import Client

SUFFIXES: Final = (".npy", ".png")


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions:
    """Options of the command, apart from those of the model."""

    output: Annotated[Path, Parameter(name=("--output", "-o"), help="A .npy or .png file.")]
    kind: Annotated[
        Literal["colors", "component", "groups"] | None,
        Parameter(
            help="For .png: three principal components as colours, the first component, or groups "
            "of similar patches. Default: colors."
        ),
    ] = None
    features: Annotated[
        Literal["values", "patches"],
        Parameter(help="patches, or values, which compare with texts."),
    ] = "patches"
    resolution: Resolution = None
    fit: AspectFit = "aspect"


def run(
    image: Annotated[
        str,
        Parameter(
            help="An image file, or - for standard input.",
            allow_leading_hyphen=True,
            validator=reject_options,
        ),
    ],
    /,
    *,
    options: Annotated[FeaturesOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status."""
    suffix = check_output(options.output, SUFFIXES)
    if suffix == ".npy" and options.kind is not None:
        raise UserError("--kind draws an image; give an --output that ends in .png.")
    encoded = read_image(image)
    compute = _draw if suffix == ".png" else _embed
    sized = {"model": model.served_name, "resolution": options.resolution, "fit": options.fit}
    with opened_engine(model, heads=()) as engine, refusals_of(image):
        content = compute(engine.client, encoded, options, sized)
    write_file(options.output, content)
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
