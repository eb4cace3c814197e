"""`tipserve classify`: rank classes for an image, or for many as CSV or JSON lines."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter, validators

from model.files import atomic_file
from service.messages import ClassifyImagesRequest, SegmentClass
from tipserve_cli.commands.files import check_output, read_image, read_lines, split_names
from tipserve_cli.commands.model_options import Model, ModelOptions, opened_engine, refusals_of
from tipserve_cli.commands.program import DONE, DONE_WITH_SKIPPED_IMAGES, reject_options
from tipserve_cli.engines.engine import ClassScore, Engine, EngineError, find_model

SUFFIXES: Final = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Options of the command, apart from those of the model."""

    classes: Annotated[str, Parameter(help="Names, separated by commas.", show_default=False)] = ""
    classes_file: Annotated[Path | None, Parameter(help="A file with a name in each line.")] = None
    output: Annotated[
        Path | None,
        Parameter(
            name=("--output", "-o"),
            help="A .csv or .jsonl file; needed for several images.",
        ),
    ] = None
    top: Annotated[
        int,
        Parameter(help="Classes of an image, the best first.", validator=validators.Number(gte=1)),
    ] = 5
    overwrite: Annotated[
        bool, Parameter(help="Replace an output, or start a stopped job again.", show_default=False)
    ] = False


def run(
    *images: Annotated[
        str,
        Parameter(
            help="An image file, or - for standard input; with --output files, folders, patterns, "
            "and - for a list of paths.",
            allow_leading_hyphen=True,
            validator=reject_options,
            required=True,
        ),
    ],
    options: Annotated[ClassifyOptions, Parameter(name="*")] = ClassifyOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The images cannot be classified, or the output cannot be written.
    """
    request = ClassifyImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=name) for name in _class_names(options)),
        model=model.served_name,
        top_k=options.top,
    )
    if options.output is not None:
        check_output(options.output, SUFFIXES)
        return _write_many(images, options.output, request, model, overwrite=options.overwrite)
    if len(images) > 1 or Path(images[0]).is_dir():
        raise EngineError("Several images need an --output that ends in .csv or .jsonl.")
    image = read_image(images[0])
    with opened_engine(model) as engine, refusals_of(images[0]):
        found = engine.classify(replace(request, images=(image,))).result()
    for one in found:
        print(f"{100 * one.probability:6.2f} %  {one.cosine:6.3f}  {one.name}")
    return DONE


def _class_names(options: ClassifyOptions) -> Sequence[str]:
    if bool(options.classes) == (options.classes_file is not None):
        raise EngineError("Give the classes by --classes or by --classes-file.")
    if options.classes_file is None:
        return split_names(options.classes)
    return [name.strip() for name in read_lines(options.classes_file)]


def _describe(scores: Sequence[ClassScore]) -> dict[str, Any]:
    return {
        "classes": [
            {
                "name": one.name,
                "probability": round(one.probability, 6),
                "cosine": round(one.cosine, 6),
            }
            for one in scores
        ]
    }


def _write_many(
    images: Sequence[str],
    output: Path,
    request: ClassifyImagesRequest,
    model: ModelOptions,
    *,
    overwrite: bool,
) -> int:
    """Write the classes of all images."""
    # Imported here, because the inputs need pyarrow, which a single image does not.
    from tipserve_cli.bulk.inputs import find_inputs  # noqa: PLC0415
    from tipserve_cli.bulk.journal import (  # noqa: PLC0415
        FilesJob,
        common_root,
        opened_journal,
        write_errors,
    )
    from tipserve_cli.bulk.output import errors_file  # noqa: PLC0415

    if output.exists() and not overwrite:
        raise EngineError(f"{output} exists; choose another output, or replace it by --overwrite.")
    inputs = find_inputs(images, sys.stdin, 1)
    with opened_engine(model) as engine:
        job = FilesJob(
            inputs=inputs,
            root=common_root(images),
            request=request,
            model=find_model(engine, model.served_name),
        )
        with opened_journal(output, job, overwrite=overwrite) as journal:
            _compute(engine, job, journal)
            _write(output, journal.good_entries())
            num_bad = write_errors(output, journal)
            journal.path.unlink()
    print(f"{output}: {len(job.paths) - num_bad} images")
    if not num_bad:
        return DONE
    print(f"{errors_file(output)}: {num_bad} images were skipped", file=sys.stderr)
    return DONE_WITH_SKIPPED_IMAGES


def _compute(engine: Engine, job: Any, journal: Any) -> None:
    from tipserve_cli.bulk.journal import Work, compute_lines  # noqa: PLC0415
    from tipserve_cli.commands.progress import shown_progress  # noqa: PLC0415

    request: ClassifyImagesRequest = job.request
    work = Work(
        window=engine.window,
        ask=lambda image: engine.classify(replace(request, images=(image,))),
        describe=_describe,
    )
    num_images, num_done = len(job.paths), journal.num_images
    with shown_progress(
        num_images, num_done, num_images - num_done, nouns=("image", "classified")
    ) as progress:
        compute_lines(job, journal, work, progress)


def _write(output: Path, entries: Iterable[dict[str, Any]]) -> None:
    with (
        atomic_file(output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        if output.suffix.lower() == ".jsonl":
            file.writelines(
                json.dumps({"file": one["file_name"], "classes": one["classes"]}) + "\n"
                for one in entries
            )
            return
        table = csv.writer(file)
        table.writerow(("file", "rank", "class", "probability", "cosine"))
        for entry in entries:
            for rank, one in enumerate(entry["classes"], start=1):
                table.writerow(
                    (entry["file_name"], rank, one["name"], one["probability"], one["cosine"])
                )
