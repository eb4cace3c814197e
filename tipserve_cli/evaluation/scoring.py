"""An evaluation: read the sets, ask the model, and write the report."""

import sys
from functools import partial
from typing import Any

from model.labelled.captions import tally
from model.labelled.known import read_known
from model.labelled.sets import CaptionedSet
from model.manifest import ScoreEntry
from tipserve_cli.engine import UsageError, UserError
from tipserve_cli.evaluation.answers import Answers, stored_answers
from tipserve_cli.evaluation.options import EvaluateOptions
from tipserve_cli.evaluation.page import write_page
from tipserve_cli.evaluation.report import Earlier, entries_of, numbers_of, write_report
from tipserve_cli.evaluation.tasks import TASKS, Task
from tipserve_cli.model_options import ModelOptions, opened_engine
from tipserve_cli.program import DONE
from tipserve_cli.progress import shown_progress
from tipserve_client import ModelInfo


def evaluate(options: EvaluateOptions, model: ModelOptions) -> int:
    """Score a model on the sets and write the report; returns the exit status."""
    if options.against is not None and options.against.resolve() == options.output.resolve():
        raise UsageError("--against is the folder of --output; choose another --output.")
    # Read before anything is computed, because that may take hours.
    earlier = None if options.against is None else Earlier.read(options.against)
    sets, _ = _sets(options), options.sentences
    with opened_engine(model) as engine, stored_answers(options.output) as stored:
        found = engine.find_model(model.served_name)
        for task, _ in sets:
            _check_head(task, options, found)
        results = []
        for task, given in sets:
            with shown_progress("image", len(given.images)) as advance:
                answers = Answers(engine, found, model.served_name, stored, partial(advance, 0))
                results.append(task.score(given, answers, options))
    entries = entries_of(results, earlier)
    write_report(options.output, found, results, entries)
    write_page(options.output, found, results, entries)
    for entry in entries:
        print(_line(entry))
    print(f"{options.output / 'report.html'}: {found.name}")
    return DONE


def _sets(options: EvaluateOptions) -> list[tuple[Task, Any]]:
    """The sets with their tasks, in the order of the report."""
    zero = {"reduce_zero_label": True} if options.reduce_zero_label else {}
    if zero and options.segmentation is None:
        raise UsageError("--reduce-zero-label is for --segmentation; remove it.")
    found: list[tuple[Task, Any]] = []
    for task in TASKS:
        places = getattr(options, task.option)
        if places is not None:
            places = places if isinstance(places, tuple) else (places,)
            given = task.read(*places, **(zero if task.option == "segmentation" else {}))
            found.append((task, given))
    if options.dataset is not None:
        known = read_known(*options.dataset)
        found += [(one, known) for one in TASKS if one.kind and isinstance(known, one.kind)]
    for _, given in found:
        if isinstance(given, CaptionedSet) and given.left_out:
            print(f"{given.name}: captions left out: {tally(given.left_out)}", file=sys.stderr)
    if not found:
        names = [f"--{task.option}" for task in TASKS]
        raise UsageError(f"Give a set: {', '.join(names)} or --dataset.")
    return found


def _check_head(task: Task, options: EvaluateOptions, model: ModelInfo) -> None:
    """Check that the model can do a task, before the first one."""
    is_own = task.option in ("segmentation", "polygons") and options.classes is not None
    head = "segmentation" if is_own else task.head
    if head and head not in model.outputs:
        raise UserError(
            f"{model.name} has no head for {head}; use a model that has one, such as a "
            "package converted from a TIPSv2 checkpoint whose name ends in -dpt."
        )


def _line(entry: ScoreEntry) -> str:
    value, interval = numbers_of(entry)
    title = f"{entry.task} | {entry.split} | {entry.row} | {entry.metric}"
    return f"{title} | {' '.join(filter(None, (value, interval)))} | n {entry.count}"
