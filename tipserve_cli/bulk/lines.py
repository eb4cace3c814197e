"""A line for each image: the instances of many images as COCO, or their classes as CSV or JSON."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from model.files import atomic_file
from tipserve_cli.bulk.inputs import Columns, InputImage, Inputs, find_inputs, readable
from tipserve_cli.bulk.job import Job, JobFolder, Row, run_here, write_file
from tipserve_cli.engine import UserError
from tipserve_cli.model_options import ModelOptions
from tipserve_client import Client

Line = dict[str, Any]
PART_ITEMS: Final = 32
# Classes whose names the answer has, and not the request: of the model's or of another head.
OWN_CLASSES: Final = "model"
HEAD_PREFIX: Final = "head:"


@dataclass(frozen=True, kw_only=True)
class LinesTask:
    """A task whose parts have a JSON line for each image.

    Attributes:
        images: Files, folders and patterns of the command line.
        classes: Names of classes.
        request: Further options of the client.
        model: Name of the served model; None is the only one.
    """

    images: Sequence[str]
    classes: Sequence[str] = ()
    request: Mapping[str, Any]
    model: str | None
    suffix: str = ".jsonl"
    columns: Columns = field(default_factory=Columns)

    @property
    def root(self) -> str | None:
        """The folder that names of files are relative to, if only one is given."""
        (first, *others) = self.images
        return first if not others and os.path.isdir(first) else None

    def options(self) -> dict[str, Any]:
        """As `Task` says."""
        found: dict[str, Any] = json.loads(json.dumps({**self.request, "classes": self.classes}))
        return found

    def name(self, image: InputImage) -> dict[str, str]:
        """As `Task` says."""
        place = image.source if self.root is None else os.path.relpath(image.source, self.root)
        return {"file_name": readable(place)}

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """As `Task` says."""
        lines = [json.dumps({**self.name(image), **row}) + "\n" for image, row in rows]
        file.write_text("".join(lines), encoding="utf-8")


def lines_of(folder: JobFolder) -> Iterator[Line]:
    """The lines of all finished parts, in order."""
    for name in folder.finished().values():
        yield from map(json.loads, folder.read(name).splitlines())


class CocoTask(LinesTask):
    """Finds instances."""

    def ask(self, client: Client, image: bytes) -> Line:
        """As `Task` says."""
        asked: dict[str, Any] = {**self.request, "include_instances": True, "model": self.model}
        (mask,) = client.segment(image, self.classes, **asked)
        height, width = mask.labels.shape
        names = ("label", "area", "box", "score", "counts")
        instances = [{name: getattr(one, name) for name in names} for one in mask.instances]
        line = {"height": height, "width": width, "instances": instances}
        if self._leaves_names_to_head:
            line["classes"] = [one.name for one in mask.classes]
        return line

    @property
    def _leaves_names_to_head(self) -> bool:
        is_head = any(name.startswith(HEAD_PREFIX) for name in self.classes)
        return is_head or list(self.classes) == [OWN_CLASSES]

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """As `Task` says."""
        assert file is not None
        names = enumerate(self._class_names(folder), start=1)
        categories = [{"id": label, "name": name} for label, name in names]
        job = folder.job
        info = {"description": f"Instances by {job.model.name}", "job": job.record()}
        numbers = count(1)
        annotations = (
            _annotation(next(numbers), image, one, line)
            for image, line in enumerate(lines_of(folder), start=1)
            for one in line["instances"]
        )
        with atomic_file(file) as temporary, temporary.open("w", encoding="utf-8") as opened:
            opened.write(f'{{"info": {json.dumps(info)}, "categories": {json.dumps(categories)}')
            images = (_image(number, line) for number, line in enumerate(lines_of(folder), start=1))
            num_images = _write_list(opened, "images", images)
            num_instances = _write_list(opened, "annotations", annotations)
            opened.write("}\n")
        return f"{num_instances} instances in {num_images} images"

    def _class_names(self, folder: JobFolder) -> Sequence[str]:
        """Names of labels 1, 2, ...; the answers have those of a head."""
        if not self._leaves_names_to_head:
            return self.classes
        found = {tuple(line["classes"]) for line in lines_of(folder)}
        if len(found) > 1:
            raise UserError(
                f"The classes of {self.classes[0]} changed during the job; run it with --overwrite."
            )
        return next(iter(found), ())


def _write_list(file: Any, name: str, items: Iterable[Line]) -> int:
    """Write a member with a list, an item a line; returns the number of items."""
    file.write(f',\n"{name}": [')
    num_items = 0
    for item in items:
        file.write((",\n" if num_items else "\n") + json.dumps(item))
        num_items += 1
    file.write("]")
    return num_items


def _image(number: int, line: Line) -> Line:
    return {"id": number, **{name: line[name] for name in ("file_name", "height", "width")}}


def _annotation(number: int, image: int, instance: Line, line: Line) -> Line:
    return {
        "id": number,
        "image_id": image,
        "category_id": instance["label"],
        "bbox": instance["box"],
        "area": instance["area"],
        "score": instance["score"],
        "iscrowd": 0,
        "segmentation": {"size": [line["height"], line["width"]], "counts": instance["counts"]},
    }


class ClassesTask(LinesTask):
    """Ranks classes."""

    def ask(self, client: Client, image: bytes) -> Line:
        """As `Task` says."""
        asked: dict[str, Any] = {**self.request, "model": self.model}
        (scores,) = client.classify(image, self.classes, **asked)
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

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """As `Task` says."""
        assert file is not None
        num_images = 0
        with (
            atomic_file(file) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as opened,
        ):
            table = csv.writer(opened)
            is_table = file.suffix.lower() == ".csv"
            if is_table:
                table.writerow(("file", "rank", "class", "probability", "cosine"))
            for line in lines_of(folder):
                num_images += 1
                if not is_table:
                    found = {"file": line["file_name"], "classes": line["classes"]}
                    opened.write(json.dumps(found) + "\n")
                    continue
                for rank, one in enumerate(line["classes"], start=1):
                    row = (one["name"], one["probability"], one["cosine"])
                    table.writerow((line["file_name"], rank, *row))
        return f"{num_images} images"


def find_image_files(named: Sequence[str]) -> Inputs:
    """Find the images of the command line, each a file of its own."""
    inputs = find_inputs(named, sys.stdin, PART_ITEMS)
    if any(part.kind != "files" for part in inputs.parts):
        raise UserError("Give image files or folders of them, no Parquet files or shards.")
    return inputs


def write_lines(output: Path, task: Any, model: ModelOptions, *, overwrite: bool) -> int:
    """Run or continue the task on all images; returns the exit status."""
    write = partial(write_file, place=str(output), overwrite=overwrite)
    return run_here(task, find_image_files(task.images), model, write)
