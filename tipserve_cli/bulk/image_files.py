"""A file for each image: masks, overlays and maps of many images, in a folder."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from tipserve_cli.bulk.inputs import InputImage, Inputs
from tipserve_cli.bulk.job import Job, JobFolder, Row, run_here, write_folder
from tipserve_cli.bulk.lines import LinesTask, find_image_files, lines_of
from tipserve_cli.bulk.stores import Folder
from tipserve_cli.engine import UserError
from tipserve_cli.model_options import ModelOptions
from tipserve_client import Client


@dataclass(frozen=True, kw_only=True)
class ImageFilesTask(LinesTask):
    """Writes a file for each image; a part lists their names.

    Attributes:
        render: The content of an image's file.
        place: Path or URL of the folder.
        ending: Of the names of the files.
    """

    render: Callable[[Client, bytes], bytes]
    place: str
    ending: str

    def ask(self, client: Client, image: bytes) -> bytes:
        """As `Task` says."""
        return self.render(client, image)

    def file_of(self, image: InputImage) -> str:
        """Name of an image's file: its own with another ending, below the folder that was given."""
        path = PurePath(self.name(image)["file_name"])
        return str((path if self.root else PurePath(path.name)).with_suffix(self.ending))

    def write(self, file: Path, rows: Iterator[Row], job: Job) -> None:
        """As `Task` says."""
        folder = Folder(self.place)
        lines = []
        for image, content in rows:
            name = self.file_of(image)
            with folder.new_file(name) as new:
                new.write_bytes(content)
            lines.append(json.dumps({**self.name(image), "file": name}) + "\n")
        file.write_text("".join(lines), encoding="utf-8")

    def join(self, folder: JobFolder, file: Path | None) -> str:
        """As `Task` says; the files are already there."""
        return f"{sum(1 for _ in lines_of(folder))} images"


def write_image_files(task: ImageFilesTask, model: ModelOptions, *, overwrite: bool) -> int:
    """Write or continue the files of all images; returns the exit status."""
    inputs = find_image_files(task.images)
    _check_names(task, inputs)
    write = partial(write_folder, place=task.place, overwrite=overwrite)
    return run_here(task, inputs, model, write)


def _check_names(task: ImageFilesTask, inputs: Inputs) -> None:
    sources: dict[str, Any] = {}
    for path in (path for part in inputs.parts for path in part.paths):
        name = task.file_of(InputImage(key=path, source=path))
        if name in sources:
            raise UserError(f"{sources[name]} and {path} would both become {name}; rename one.")
        sources[name] = path
