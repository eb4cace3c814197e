"""`tipserve classify`: rank classes for an image, or for many as CSV or JSON lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from tipserve_cli.engine import UsageError, refusals_of
from tipserve_cli.files import check_output, read_image, read_lines, split_names
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Flag,
    Input,
    Model,
    ModelOptions,
    Positive,
    as_help,
    opened_engine,
)
from tipserve_cli.program import DONE

SUFFIXES: Final = (".csv", ".jsonl")


@as_help
@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        classes: Names, separated by commas.
        classes_file: A file with a name in each line.
        output: A .csv or .jsonl file; needed for several images.
        top: Classes of an image, the best first.
        overwrite: Replace an output, or start a stopped job again.
    """

    classes: Annotated[str, Parameter(show_default=False)] = ""
    classes_file: Path | None = None
    output: Annotated[Path | None, OUTPUT_OR_PIPE] = None
    top: Positive = 5
    overwrite: Flag = False


@as_help
def run(
    *images: Annotated[Input, Parameter(required=True)],
    options: Annotated[ClassifyOptions, Parameter(name="*")] = ClassifyOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        images: An image file, or - for standard input; with --output files, folders, patterns, and
            - for a list of paths.
        options: Of the command.
        model: Here, or on a server.
    """
    names = split_names(options.classes)
    if bool(names) == (options.classes_file is not None):
        raise UsageError("Give the classes by --classes or by --classes-file.")
    if options.classes_file is not None:
        names = tuple(name.strip() for name in read_lines(options.classes_file))
    request = {"top_k": options.top}
    if options.output is not None:
        from tipserve_cli.bulk.lines import ClassesTask, write_lines  # noqa: PLC0415

        check_output(options.output, SUFFIXES)
        task = ClassesTask(images=images, classes=names, request=request, model=model.served_name)
        return write_lines(options.output, task, model, overwrite=options.overwrite)
    if len(images) > 1 or Path(images[0]).is_dir():
        raise UsageError("Several images need an --output that ends in .csv or .jsonl.")
    image = read_image(images[0])
    with opened_engine(model, heads=()) as engine, refusals_of(images[0]):
        asked: Any = {**request, "model": model.served_name}
        (found,) = engine.client.classify(image, names, **asked)
    for one in found:
        print(f"{100 * one.probability:6.2f} %  {one.cosine:6.3f}  {one.name}")
    return DONE
