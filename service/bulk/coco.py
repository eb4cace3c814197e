"""Instances of many images as one COCO file, which continues where it stopped.

Each image appends a line to a journal next to the output: its size and instances, or why it was
skipped. The COCO file is written from the journal once all images have a line.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from model.files import LockHeld, LocksUnsupported, atomic_file, locked
from service.bulk.embedding import readable
from service.bulk.inputs import Columns, InputError, InputImage, Inputs, Part, read_part
from service.bulk.output import JobError, compare_records, errors_file
from service.bulk.running import JobProgress
from service.engines.engine import Engine, ImageRefused, Mask, ModelSummary
from service.messages import SegmentImagesRequest

RECORD_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoJob:
    """Everything that the file depends on.

    Attributes:
        inputs: Image files.
        root: Folder that names of files are relative to; None keeps them as given.
        request: The request for each image, without the image.
        model: Computes the masks.
    """

    inputs: Inputs
    root: str | None
    request: SegmentImagesRequest
    model: ModelSummary

    @property
    def paths(self) -> tuple[str, ...]:
        """The image files, in order.

        Raises:
            InputError: The inputs are Parquet files or shards.
        """
        if any(part.kind != "files" for part in self.inputs.parts):
            raise InputError("--format coco reads image files and folders of them.")
        return tuple(path for part in self.inputs.parts for path in part.paths)

    def record(self) -> dict[str, Any]:
        """The record, which is compared when the job continues."""
        options = asdict(self.request)
        del options["images"], options["model"]
        inputs = {"digest": self.inputs.digest, "num_images": self.inputs.num_images}
        model = {"name": self.model.name, "fingerprint": self.model.fingerprint}
        record = {"version": RECORD_VERSION, "options": options, "model": model, "inputs": inputs}
        plain: dict[str, Any] = json.loads(json.dumps(record))
        return plain

    def file_name(self, path: str) -> str:
        """Name of an image in the file."""
        return readable(path if self.root is None else os.path.relpath(path, self.root))


def journal_file(output: Path) -> Path:
    """The journal of an output."""
    return output.with_name(f"{output.name}.journal")


@contextmanager
def opened_journal(output: Path, job: CocoJob, *, overwrite: bool) -> Iterator["Journal"]:
    """The journal of a job, locked for this process.

    Raises:
        JobError: Another process has locked it, or it is of another job.
    """
    path = journal_file(output)
    lock = output.with_name(f".{output.name}.lock")
    try:
        with suppress(LocksUnsupported), locked(lock, wait=False):
            if overwrite:
                path.unlink(missing_ok=True)
            yield Journal(path, job.record(), output)
    except LockHeld as error:
        raise JobError(f"Another process writes {output}; wait until it ends.") from error
    finally:
        lock.unlink(missing_ok=True)


def is_finished(output: Path, job: CocoJob) -> bool:
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


class Journal:
    """Lines of images, in order, after a line with the record of the job.

    Raises:
        JobError: The file is of another job.
    """

    def __init__(self, path: Path, record: dict[str, Any], output: Path) -> None:
        self.path = path
        if not path.exists() or not path.stat().st_size:
            path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        # A line that a crash cut off is computed again.
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        lines = whole.split(b"\n", maxsplit=1)
        found = json.loads(lines[0]) if lines[0] else None
        compare_records(found, record, str(output))
        self.num_images = whole.count(b"\n") - 1

    def append(self, lines: Iterator[dict[str, Any]]) -> None:
        """Write a line for each further image."""
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
                file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """The lines of the images."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)


def segment_files(engine: Engine, job: CocoJob, journal: Journal, progress: JobProgress) -> None:
    """Compute the images without a line in the journal.

    Raises:
        EngineError: The engine failed.
    """
    journal.append(_lines(engine, job, job.paths[journal.num_images :], progress))


def _lines(
    engine: Engine, job: CocoJob, paths: Sequence[str], progress: JobProgress
) -> Iterator[dict[str, Any]]:
    """A line for each image; as many images at a time as keep the engine busy."""
    in_flight: deque[tuple[InputImage, Future[Mask] | None]] = deque()
    try:
        for path in paths:
            if len(in_flight) >= engine.window:
                yield _line(job, *in_flight.popleft(), progress)
            (image,) = read_part(Part(number=0, kind="files", paths=(path,)), Columns())
            future = None
            if isinstance(image.data, bytes):
                future = engine.segment(replace(job.request, images=(image.data,)))
            in_flight.append((image, future))
        while in_flight:
            yield _line(job, *in_flight.popleft(), progress)
    finally:
        for _, future in in_flight:
            if future is not None:
                future.cancel()


def _line(
    job: CocoJob, image: InputImage, future: "Future[Mask] | None", progress: JobProgress
) -> dict[str, Any]:
    name = job.file_name(image.source)
    line: dict[str, Any] = {"file_name": name, "code": image.code, "error": image.problem}
    if future is not None:
        try:
            mask = future.result()
            height, width = mask.labels_HW.shape
            instances = [asdict(one) for one in mask.instances]
            line = {"file_name": name, "height": height, "width": width, "instances": instances}
        except ImageRefused as error:
            line = {"file_name": name, "code": error.code, "error": str(error)}
    progress.image_read()
    progress.part_written(len(line.get("instances", ())), int("error" in line))
    return line


def write_coco(output: Path, job: CocoJob, journal: Journal) -> tuple[int, int, int]:
    """Write the COCO file, and the skipped images beside it; remove the journal.

    Returns:
        Number of images, of instances, and of skipped images.
    """
    bad = [entry for entry in journal.entries() if "error" in entry]
    num_instances = 0
    with atomic_file(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        categories = [
            {"id": label, "name": one.name} for label, one in enumerate(job.request.classes, 1)
        ]
        info = {"description": f"Instances by {job.model.name}", "job": job.record()}
        file.write(f'{{"info": {json.dumps(info)}, "categories": {json.dumps(categories)}')
        images = enumerate((e for e in journal.entries() if "error" not in e), start=1)
        _write_list(file, "images", (_image(number, entry) for number, entry in images))
        numbers = count(1)
        images = enumerate((e for e in journal.entries() if "error" not in e), start=1)
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
    errors = errors_file(output)
    errors.unlink(missing_ok=True)
    if bad:
        errors.write_text("".join(json.dumps(entry) + "\n" for entry in bad), encoding="utf-8")
    journal.path.unlink()
    return len(job.paths) - len(bad), num_instances, len(bad)


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
