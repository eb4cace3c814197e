"""Files of bulk jobs, in a file system or an object store, through fsspec."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from model.files import TEMPORARY_SUFFIX, atomic_file
from model.stores import StoreError, is_url, open_store
from tipserve_cli.engine import UserError


def open_place(place: str) -> tuple[Any, str]:
    """Fsspec's file system of a path or URL, and the path in it."""
    if not is_url(place):
        return LocalFileSystem(), os.path.abspath(place)
    try:
        return open_store(place)
    except StoreError as error:
        raise UserError(str(error)) from error


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Name the object of a failure; each store has exceptions of its own."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_url(place):
            raise
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error


class Folder:
    """A folder of a job. A file appears whole, by a rename or an upload.

    Attributes:
        place: Its path or URL.
    """

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self._files, self._root = open_place(place)

    def names(self, folder: str = "") -> list[str]:
        """Names in the folder or in a folder of it; none if there is no such folder."""
        # Other machines write parts.
        self._files.invalidate_cache()
        with explained(self.place):
            try:
                found = self._files.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with explained(f"{self.place}/{name}"):
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        return content

    def write(self, name: str, content: str) -> None:
        """Write a file."""
        with self.new_file(name) as file:
            file.write_text(content, encoding="utf-8")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError), explained(f"{self.place}/{name}"):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Give the path of a temporary file, which gets its name if the block ends well."""
        place = f"{self._root}/{name}"
        if isinstance(self._files, LocalFileSystem):
            self._files.makedirs(os.path.dirname(place), exist_ok=True)
            with atomic_file(Path(place)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as scratch:
            yield (path := Path(scratch) / "content")
            with explained(f"{self.place}/{name}"):
                self._files.put_file(str(path), place)

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading anywhere in it."""
        with explained(f"{self.place}/{name}"):
            file = self._files.open(f"{self._root}/{name}", "rb")
        with file:
            yield file

    def tidy(self) -> None:
        """Remove temporary files that killed writers left; in a store they leave none."""
        if isinstance(self._files, LocalFileSystem):
            for left in Path(self._root).rglob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink()
