"""`tipserve features`: the patch embeddings of an image, or a drawing of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from model.preprocess import Fit
from service.messages import (
    EmbedImagesRequest,
    FeatureKind,
    Features,
    VisualizeFeaturesRequest,
)
from service.outputs.features import encode_view_png
from service.outputs.masks import encode_npy
from tipserve_cli.commands.files import check_output, read_image, write_file
from tipserve_cli.commands.model_options import Model, ModelOptions, opened_engine, refusals_of
from tipserve_cli.commands.program import DONE, reject_options
from tipserve_cli.engines.engine import Engine, EngineError

SUFFIXES: Final = (".npy", ".png")


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions:
    """Options of the command, apart from those of the model."""

    output: Annotated[Path, Parameter(name=("--output", "-o"), help="A .npy or .png file.")]
    kind: Annotated[
        FeatureKind | None,
        Parameter(
            help="For .png: three principal components as colours, the first component, or groups "
            "of similar patches. Default: colors."
        ),
    ] = None
    features: Annotated[
        Features, Parameter(help="patches, or values, which compare with texts.")
    ] = "patches"
    resolution: Annotated[
        int | None, Parameter(help="Resize the short side to this many pixels.")
    ] = None
    fit: Annotated[Fit, Parameter(help="Keep the aspect ratio, or resize to a square.")] = (
        VisualizeFeaturesRequest.fit
    )


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
    """Run the command; returns the exit status.

    Raises:
        UserError: The features cannot be computed or written.
    """
    suffix = check_output(options.output, SUFFIXES)
    if suffix == ".npy" and options.kind is not None:
        raise EngineError("--kind draws an image; give an --output that ends in .png.")
    encoded = read_image(image)
    compute = _draw if suffix == ".png" else _embed
    with opened_engine(model) as engine, refusals_of(image):
        content = compute(engine, encoded, options, model.served_name)
    write_file(options.output, content)
    return DONE


def _draw(engine: Engine, image: bytes, options: FeaturesOptions, name: str | None) -> bytes:
    request = VisualizeFeaturesRequest(
        images=(image,),
        model=name,
        kind=options.kind or VisualizeFeaturesRequest.kind,
        features=options.features,
        resolution=options.resolution,
        fit=options.fit,
    )
    return encode_view_png(engine.visualize(request).result(), request.kind)


def _embed(engine: Engine, image: bytes, options: FeaturesOptions, name: str | None) -> bytes:
    request = EmbedImagesRequest(
        images=(image,),
        model=name,
        outputs=(options.features,),
        resolution=options.resolution,
        fit=options.fit,
    )
    return encode_npy(engine.embed(request).result()[options.features])
