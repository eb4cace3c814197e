"""`tipserve evaluate`: score a model on labelled images, and write a report."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from model.manifest import ScoreEntry
from model.preprocess import Fit
from tipserve_cli.engine import UserError
from tipserve_cli.files import read_lines
from tipserve_cli.model_options import OUTPUT, Flag, Model, ModelOptions, as_help, opened_engine
from tipserve_cli.program import DONE
from tipserve_cli.progress import shown_progress
from tipserve_client import ModelInfo

TEMPLATE_SETS: Final = ("none", "tcl")
KnownName = Literal[
    "ade20k", "voc21", "context59", "context60", "coco", "flickr30k", "docci", "imagenet", "nyuv2",
    "navi-depth", "navi-normals", "uned", "uned-cars", "uned-food2k", "uned-gldv2", "uned-inat",
    "uned-inshop", "uned-met", "uned-rp2k", "uned-sop",
]  # fmt: skip


@as_help
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        segmentation: Folder of images, folder of masks (x.png for x.jpg), and a file with a name a
            line: label k is the k-th name from 0, and 255 is no class.
        polygons: Folder of images with an annotations.json in COCO's format, whose categories are
            the names. A category with isthing 0 is stuff.
        reduce_zero_label: For masks: label 0 is no class, and label k the k-th name from 1.
        retrieval: Folder of images, each with captions in a .txt file of its name, one a line; or
            of WebDataset shards.
        classification: Folder with a folder of images for each class, named after it.
        instances: Folder with a folder of images for each thing: each image finds the others of
            its thing. With query/ and index/, each of which has these folders, the images of
            query/ are searched in index/.
        knn: Folder with train/ and val/, each as for --classification: the votes of the nearest
            train/ images.
        linear: The same folders: a logistic regression.
        dataset: A known set and its folder, as its authors distribute it.
        depth: Folder of images, and folder of their depth: x.npy in metres, or x.png in
            millimetres, 16 bits. 0 or not finite is no depth.
        normals: Folder of images, and folder of their surface normals: x.npy, unit vectors, or
            x.png, -1 to 1 as 0 to 255. Black, grey 127 or 128, and zero are no normal.
        output: Folder of the report, and of the model's answers, from which a stopped evaluation
            continues.
        mode: For segmentation: whole images, or windows. Default: the model's own.
        fit: For segmentation: keep the aspect ratio, or resize to a square. Default: a square for
            --classes model, as released, and the aspect ratio for names.
        features: For segmentation: the patch embeddings. Default: the model's own.
        quality: For segmentation: of the masks. Default: the model's own.
        background: For segmentation: whether the model finds background itself. With none, objects
            are those pixels whose cosine is at a threshold or above; it is fitted on other images.
        background_level: For --background auto: the cosine that a pixel needs, from 0 for the
            least to 1 for the largest of its class. Default: the model's own.
        background_threshold: For segmentation: pixels with a lower cosine are of the class
            `background`.
        classes: For segmentation: masks by the model's own segmentation head, whose classes have
            the names of the set.
        templates: Sentences for class names: none, tcl, or a file with a sentence a line in which
            {} is the name. Default: the model's own in segmentation, tcl in classification.
        embedding: The embedding of an image, for all other tasks.
        resolution: Resize the short side to this many pixels.
        against: Folder of an earlier report: adds the differences to it.
    """

    segmentation: tuple[Path, Path, Path] | None = None
    polygons: Path | None = None
    reduce_zero_label: Flag = False
    retrieval: Path | None = None
    classification: Path | None = None
    instances: Path | None = None
    knn: Path | None = None
    linear: Path | None = None
    dataset: tuple[KnownName, Path] | None = None
    depth: tuple[Path, Path] | None = None
    normals: tuple[Path, Path] | None = None
    output: Annotated[Path, OUTPUT] = Path("evaluation")
    mode: Literal["whole", "slide"] | None = None
    fit: Fit | None = None
    features: Literal["values", "patches"] | None = None
    quality: Literal["published", "fast", "fine"] | None = None
    background: Literal["none", "auto"] = "none"
    background_level: float | None = None
    background_threshold: float | None = None
    classes: Literal["model"] | None = None
    templates: str | None = None
    embedding: Literal["cls1", "cls2"] = "cls1"
    resolution: int | None = None
    against: Path | None = None


@as_help
def run(
    *,
    options: Annotated[EvaluateOptions, Parameter(name="*")] = EvaluateOptions(),
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status."""
    # Imported here, because help does not need them.
    from tipserve_cli.evaluation.answers import Answers, stored_answers  # noqa: PLC0415
    from tipserve_cli.evaluation.report import Earlier  # noqa: PLC0415

    if options.against is not None and options.against.resolve() == options.output.resolve():
        raise UserError("--against is the folder of --output; choose another --output.")
    # Read before anything is computed, because that may take hours.
    earlier = None if options.against is None else Earlier.read(options.against)
    sets, asked = _sets(options), _task_options(options)
    with opened_engine(model) as engine, stored_answers(options.output) as stored:
        found = engine.find_model(model.served_name)
        for task, _ in sets:
            _check_head(task, options, found)
        results = []
        for task, given in sets:
            with shown_progress("image", len(given.images)) as advance:
                answers = Answers(engine, found, model.served_name, stored, partial(advance, 0))
                results.append(task.score(given, answers, asked))
    return _report(options.output, found, results, earlier)


def _report(output: Path, model: ModelInfo, results: Sequence[Any], earlier: Any) -> int:
    """Write the report, compared with an earlier one."""
    from tipserve_cli.evaluation.page import write_page  # noqa: PLC0415 - help does not need them
    from tipserve_cli.evaluation.report import entries_of, write_report  # noqa: PLC0415

    entries = entries_of(results, earlier)
    write_report(output, model, results, entries)
    write_page(output, model, results, entries)
    for entry in entries:
        print(_line(entry))
    print(f"{output / 'report.html'}: {model.name}")
    return DONE


def _sets(options: EvaluateOptions) -> list[tuple[Any, Any]]:
    """The sets with their tasks, in the order of the report."""
    from model.labelled.captions import tally  # noqa: PLC0415 - help does not need them
    from model.labelled.known import read_known  # noqa: PLC0415 - help does not need them
    from model.labelled.sets import CaptionedSet  # noqa: PLC0415
    from tipserve_cli.evaluation.tasks import TASKS  # noqa: PLC0415

    zero = {"reduce_zero_label": True} if options.reduce_zero_label else {}
    if zero and options.segmentation is None:
        raise UserError("--reduce-zero-label is for --segmentation; remove it.")
    found = []
    for task in TASKS:
        places = getattr(options, task.option)
        if places is not None:
            places = places if isinstance(places, tuple) else (places,)
            found.append(
                (task, task.read(*places, **(zero if task.option == "segmentation" else {})))
            )
    if options.dataset is not None:
        known = read_known(*options.dataset)
        found += [(one, known) for one in TASKS if one.kind and isinstance(known, one.kind)]
    for _, given in found:
        if isinstance(given, CaptionedSet) and given.left_out:
            print(f"{given.name}: captions left out: {tally(given.left_out)}", file=sys.stderr)
    if not found:
        names = [f"--{task.option.replace('_', '-')}" for task in TASKS]
        raise UserError(f"Give a set: {', '.join(names)} or --dataset.")
    return found


def _check_head(task: Any, options: EvaluateOptions, model: ModelInfo) -> None:
    """Check that the model can do a task, before the first one."""
    is_own = task.option in ("segmentation", "polygons") and options.classes is not None
    head = "segmentation" if is_own else task.head
    if head and head not in model.outputs:
        raise UserError(
            f"{model.name} has no head for {head}; use a model that has one, such as a "
            "package converted from a TIPSv2 checkpoint whose name ends in -dpt."
        )


def _task_options(options: EvaluateOptions) -> Any:
    from tipserve_cli.evaluation.tasks import TaskOptions  # noqa: PLC0415 - help does not need it

    given: dict[str, Any] = {one.name: getattr(options, one.name) for one in fields(TaskOptions)}
    return TaskOptions(**{**given, "templates": _templates(options.templates)})


def _templates(given: str | None) -> Any:
    if given is None or given in TEMPLATE_SETS:
        return given
    lines = tuple(read_lines(Path(given)))
    bad = [line for line in lines if line.count("{}") != 1]
    if bad:
        raise UserError(f"{given}: {bad[0]!r} needs {{}} once, where the name stands.")
    return lines


def _line(entry: ScoreEntry) -> str:
    from tipserve_cli.evaluation.report import digits  # noqa: PLC0415 - help does not need it

    places = digits(entry.metric)
    interval = "" if entry.low is None else f" [{entry.low:.{places}f}, {entry.high:.{places}f}]"
    title = f"{entry.task} | {entry.split} | {entry.row} | {entry.metric}"
    return f"{title} | {entry.value:.{places}f}{interval} | n {entry.count}"
