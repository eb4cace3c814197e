"""`python -m training export`: write a model package from a checkpoint."""

from pathlib import Path

from pydantic.dataclasses import dataclass

from model.graphs import USUAL_PRECISIONS, ExportPrecision
from training.export import export_package
from training.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    checkpoint: Path = option("folder written by `evaluate --output`")
    output: Path = option("folder of the package")
    graphs_only: bool = option("leave the weights for torch out of the package", False)
    name: str = option("model name in requests")
    precision: tuple[ExportPrecision, ...] = option(
        "additional graphs, next to fp32; may be repeated. Default: fp16, for GPUs, which is left "
        "out if it differs too much",
        (),
    )


def run(options: Options) -> None:
    """Export; fails if a graph differs from torch."""
    package = export_package(
        options.checkpoint,
        options.output,
        name=options.name,
        is_graphs_only=options.graphs_only,
        precisions=options.precision or USUAL_PRECISIONS,
        may_fail=() if options.precision else USUAL_PRECISIONS,
    )
    print(f"{package.manifest.name} is ready in {package.path}")
