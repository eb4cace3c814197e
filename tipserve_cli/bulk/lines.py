"""Jobs with a JSON line for each image: COCO instances, classes as CSV or JSON, image files."""

import csv
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import Any, Final, TextIO

from model.files import atomic_file
from model.graphs import DenseTask
from tipserve_cli.bulk.inputs import InputImage, Inputs, find_inputs, readable
from tipserve_cli.bulk.job import Job, JobFolder, Row, Task, run_here
from tipserve_cli.engine import UsageError, UserError, refusals_of
from tipserve_cli.files import check_one_image, is_folder, read_image, write_output
from tipserve_cli.model_options import ModelOptions, opened_engine
from tipserve_cli.program import DONE
from tipserve_client import Client

Line = dict[str, Any]
PART_ITEMS: Final = 32
# Classes whose names the answer has, and not the request: of the model's or of another head.
OWN_CLASSES: Final = "model"
HEAD_PREFIX: Final = "head:"


@dataclass(frozen=True, kw_only=True)
class LinesTask(Task):
    """A task whose parts have a JSON line for each image.

    Attributes:
        images: Files, folders and patterns of the command line.
        classes: Names of classes.
    """

    images: Sequence[str]
    classes: Sequence[str] = ()

    @property
    def root(self) -> str | None:
        """The folder that names of files are relative to, if only one is given."""
        (first, *others) = self.images
        return first if not others and os.path.isdir(first) else None

    def options(self) -> dict[str, Any]:
        """The request, and the classes."""
        found: dict[str, Any] = json.loads(json.dumps({**self.request, "classes": self.classes}))
        return found

    def name(self, image: InputImage) -> dict[str, str]:
        """The file, relative to the folder that was given."""
        place = image.source if self.root is None else os.path.relpath(image.source, self.root)
        return {"file_name": readable(place)}

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """Write a line for each image."""
        lines = [json.dumps({**self.name(image), **row}) + "\n" for image, row in rows]
        file.write_text("".join(lines), encoding="utf-8")

    def find_images(self) -> Inputs:
        """Find the images, each a file of its own."""
        inputs = find_inputs(self.images, sys.stdin, PART_ITEMS)
        if inputs.kind != "files":
            raise UsageError("Give image files or folders of them, no Parquet files or shards.")
        return inputs


def write_lines(output: Path, task: LinesTask, model: ModelOptions, *, overwrite: bool) -> int:
    """Run or continue the task on all images, for one file; returns the exit status."""
    written = {"output": str(output), "is_file": True, "overwrite": overwrite}
    return run_here(task, task.find_images(), model, **written)


def lines_of(folder: JobFolder) -> Iterator[Line]:
    """The lines of all finished parts, in order."""
    for name in folder.finished().values():
        yield from map(json.loads, folder.call("cat_file", name).splitlines())


class CocoTask(LinesTask):
    """Finds instances, and joins them to a file in COCO's format."""

    def row(self, client: Client, image: InputImage) -> Line:
        """The size and instances of an image, and the names of classes that only a head knows."""
        mask: Any
        (mask,) = client.segment(image.read(), self.classes, include_instances=True, **self.asked)
        height, width = mask.labels.shape
        names = ("label", "area", "box", "score", "counts")
        instances = [
            {name: getattr(one, name) for name in names}
            | {"confidence": mask.classes[one.label - 1].confidence}
            for one in mask.instances
        ]
        line = {"height": height, "width": width, "instances": instances}
        if self._leaves_names_to_head:
            line["classes"] = [one.name for one in mask.classes]
        return line

    @property
    def _leaves_names_to_head(self) -> bool:
        is_head = any(name.startswith(HEAD_PREFIX) for name in self.classes)
        return is_head or list(self.classes) == [OWN_CLASSES]

    def stored_record(self, file: Path) -> object:
        """The record in the file's `info`."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(file.read_bytes())["info"]["job"]
        return None

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """Write the file, an image or an instance a line."""
        assert file is not None
        numbers, names = count(1), enumerate(self._class_names(folder), start=1)
        info = {
            "description": f"Instances by {folder.job.model['name']}",
            "job": folder.job.record(),
        }
        head = {"info": info, "categories": [{"id": label, "name": name} for label, name in names]}
        images = (
            {"id": number, **{name: line[name] for name in ("file_name", "height", "width")}}
            for number, line in enumerate(lines_of(folder), start=1)
        )
        annotations = (
            _annotation(next(numbers), image, one, line)
            for image, line in enumerate(lines_of(folder), start=1)
            for one in line["instances"]
        )
        with atomic_file(file) as temporary, temporary.open("w", encoding="utf-8") as opened:
            opened.write(json.dumps(head).removesuffix("}"))
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


def _annotation(number: int, image: int, instance: Line, line: Line) -> Line:
    confidence = instance.get("confidence")
    return {
        "id": number,
        "image_id": image,
        "category_id": instance["label"],
        "bbox": instance["box"],
        "area": instance["area"],
        "score": instance["score"],
        **({} if confidence is None else {"confidence": confidence}),
        "iscrowd": 0,
        "segmentation": {"size": [line["height"], line["width"]], "counts": instance["counts"]},
    }


def _write_list(file: TextIO, name: str, items: Iterable[Line]) -> int:
    """Write a member with a list, an item a line; returns the number of items."""
    file.write(f',\n"{name}": [')
    number = 0
    for number, item in enumerate(items, start=1):
        file.write((",\n" if number > 1 else "\n") + json.dumps(item))
    file.write("]")
    return number


class ClassesTask(LinesTask):
    """Ranks classes, and joins them to a table or to JSON lines."""

    def row(self, client: Client, image: InputImage) -> Line:
        """The classes of an image, the best first."""
        scores: Any
        (scores,) = client.classify(image.read(), self.classes, **self.asked)
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
        """Write the table or the lines."""
        assert file is not None
        is_table, num_images = file.suffix.lower() == ".csv", 0
        with (
            atomic_file(file) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as opened,
        ):
            table = csv.writer(opened)
            if is_table:
                table.writerow(("file", "rank", "class", "probability", "cosine"))
            for line in lines_of(folder):
                num_images += 1
                name, classes = line["file_name"], line["classes"]
                if is_table:
                    rows = enumerate(map(dict.values, classes), start=1)
                    table.writerows((name, rank, *values) for rank, values in rows)
                else:
                    opened.write(json.dumps({"file": name, "classes": classes}) + "\n")
        return f"{num_images} images"


@dataclass(frozen=True, kw_only=True)
class ImageFilesTask(LinesTask):
    """Writes a file for each image, or for the only one; a part lists their names.

    Attributes:
        render: The content of an image's file.
        output: Path or URL of the folder, or the file of the only image.
        ending: Of the names of the files.
    """

    render: Callable[[Client, bytes], bytes]
    output: str
    ending: str

    def file_of(self, image: InputImage) -> str:
        """Name of an image's file: its own with another ending, below the folder that was given."""
        path = PurePath(self.name(image)["file_name"])
        return str((path if self.root else PurePath(path.name)).with_suffix(self.ending))

    def row(self, client: Client, image: InputImage) -> Any:
        """The content of an image's file."""
        return self.render(client, image.read())

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """Write the files, and the list of their names."""
        folder = JobFolder(self.output, job)

        def written() -> Iterator[Row]:
            for image, content in rows:
                with folder.new_file(name := self.file_of(image)) as new:
                    new.write_bytes(content)
                yield image, {"file": name}

        super().write(file, written(), job)

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """Count the files, which are already there."""
        return f"{sum(1 for _ in lines_of(folder))} images"


def write_image_files(
    task: ImageFilesTask, model: ModelOptions, heads: Collection[DenseTask], *, overwrite: bool
) -> int:
    """Write or continue the files of all images, or write the only one; returns the exit status.

    Args:
        task: The images, and what is written.
        model: Here, or on a server.
        heads: The dense heads that the task needs.
        overwrite: Start a stopped job again.

    Raises:
        UserError: The image is refused, or two images have one name.
    """
    if is_folder(task.output):
        inputs = task.find_images()
        _check_names(task, inputs)
        written = {"output": task.output, "is_file": False, "overwrite": overwrite}
        return run_here(task, inputs, model, **written)
    named = check_one_image(task.images)
    image = read_image(named)
    with opened_engine(model, heads) as engine, refusals_of(named):
        content = task.render(engine.client, image)
    write_output(Path(task.output), content)
    return DONE


def _check_names(task: ImageFilesTask, inputs: Inputs) -> None:
    sources: dict[str, str] = {}
    for path in (path for part in inputs.parts for path in part.paths):
        name = task.file_of(InputImage(key=path, source=path, content=path))
        if name in sources:
            raise UserError(f"{sources[name]} and {path} would both become {name}; rename one.")
        sources[name] = path
