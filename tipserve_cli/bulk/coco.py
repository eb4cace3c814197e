"""Instances of many images as one COCO file, from a journal with a line for each image."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from model.files import atomic_file
from service.messages import SegmentImagesRequest
from service.models.heads import leaves_names_to_head
from tipserve_cli.bulk.journal import FilesJob, Journal, Work, compute_lines, write_errors
from tipserve_cli.bulk.output import JobError, compare_records
from tipserve_cli.bulk.running import JobProgress
from tipserve_cli.engines.engine import Engine, Mask


def is_finished(output: Path, job: FilesJob) -> bool:
    """Whether the output exists and is of this job.

    Raises:
        JobError: It is of another job, or no output of this command.
    """
    if not output.exists():
        return False
    with output.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().rstrip(",\n")
    found = None
    with suppress(ValueError, LookupError, TypeError):
        found = json.loads(first + "}")["info"]["job"]
    compare_records(found, job.record(), str(output))
    return True


def segment_files(engine: Engine, job: FilesJob, journal: Journal, progress: JobProgress) -> None:
    """Compute the images without a line in the journal.

    Raises:
        EngineError: The engine failed.
    """
    request = job.request
    assert isinstance(request, SegmentImagesRequest)
    work = Work(
        window=engine.window,
        ask=lambda image: engine.segment(replace(request, images=(image,))),
        describe=_describe_with_names if leaves_names_to_head(request) else _describe,
        count=lambda line: len(line["instances"]),
    )
    compute_lines(job, journal, work, progress)


def _describe(mask: Mask) -> dict[str, Any]:
    height, width = mask.labels_HW.shape
    instances = [asdict(one) for one in mask.instances]
    return {"height": height, "width": width, "instances": instances}


def _describe_with_names(mask: Mask) -> dict[str, Any]:
    return {**_describe(mask), "classes": mask.classes}


def _class_names(job: FilesJob, journal: Journal) -> Sequence[str]:
    """Names of labels 1, 2, ...; the answers have those of a head."""
    request = job.request
    assert isinstance(request, SegmentImagesRequest)
    if not leaves_names_to_head(request):
        return [one.name for one in request.classes]
    found = {tuple(entry["classes"]) for entry in journal.good_entries()}
    if len(found) > 1:
        named = request.classes[0].name
        raise JobError(f"The classes of {named} changed during the job; run it with --overwrite.")
    return next(iter(found), ())


def write_coco(output: Path, job: FilesJob, journal: Journal) -> tuple[int, int, int]:
    """Write the COCO file, and the skipped images beside it; remove the journal.

    Returns:
        Number of images, of instances, and of skipped images.

    Raises:
        JobError: The head that the request names changed during the job.
    """
    names = _class_names(job, journal)
    with atomic_file(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        categories = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
        info = {"description": f"Instances by {job.model.name}", "job": job.record()}
        file.write(f'{{"info": {json.dumps(info)}, "categories": {json.dumps(categories)}')
        images = enumerate(journal.good_entries(), start=1)
        _write_list(file, "images", (_image(number, entry) for number, entry in images))
        numbers = count(1)
        images = enumerate(journal.good_entries(), start=1)
        num_instances = _write_list(
            file,
            "annotations",
            (
                _annotation(next(numbers), number, one, entry)
                for number, entry in images
                for one in entry["instances"]
            ),
        )
        file.write("}\n")
    num_bad = write_errors(output, journal)
    journal.path.unlink()
    return len(job.paths) - num_bad, num_instances, num_bad


def _write_list(file: Any, name: str, items: Iterator[dict[str, Any]]) -> int:
    """Write a member with a list, an item a line; returns the number of items."""
    file.write(f',\n"{name}": [')
    num_items = 0
    for item in items:
        file.write((",\n" if num_items else "\n") + json.dumps(item))
        num_items += 1
    file.write("]")
    return num_items


def _image(number: int, entry: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, **{name: entry[name] for name in ("file_name", "height", "width")}}


def _annotation(
    number: int, image: int, instance: dict[str, Any], entry: dict[str, Any]
) -> dict[str, Any]:
    size = [entry["height"], entry["width"]]
    return {
        "id": number,
        "image_id": image,
        "category_id": instance["label"],
        "bbox": instance["box"],
        "area": instance["area"],
        "score": instance["score"],
        "iscrowd": 0,
        "segmentation": {"size": size, "counts": instance["counts"]},
    }
