"""`tipserve features`: the patch embeddings of an image, or a drawing of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from model.preprocess import Fit
from tipserve_cli.engine import UsageError, refusals_of
from tipserve_cli.files import check_output, read_image, write_output
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Input,
    Model,
    ModelOptions,
    Positive,
    as_help,
    opened_engine,
)
from tipserve_cli.program import DONE

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
    resolution: Positive | None = None
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
        raise UsageError("--kind draws an image; give an --output that ends in .png.")
    from tipserve_cli import local  # noqa: PLC0415 - slow to import

    encoded, kind, features = read_image(image), options.kind or "colors", options.features
    asked: Any = {"resolution": options.resolution, "fit": options.fit, "model": model.served_name}
    with opened_engine(model, heads=()) as engine, refusals_of(image):
        if suffix == ".png":
            (drawn,) = engine.client.features(encoded, kind=kind, features=features, **asked)
            content = local.features.encode_view_png(drawn, kind)
        else:
            (found,) = engine.client.embed_images(encoded, outputs=features, **asked)
            content = local.masks.encode_npy(getattr(found, features))
    write_output(options.output, content)
    return DONE
