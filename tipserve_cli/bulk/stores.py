"""Object stores as inputs and outputs of bulk jobs."""

import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from model.stores import StoreError, open_store
from tipserve_cli.engines.engine import UserError


class StoreFailed(UserError):
    """A store refuses or does not answer. The same command continues the job later."""


def _open(url: str) -> tuple[Any, str]:
    try:
        return open_store(url)
    except StoreError as error:
        raise StoreFailed(str(error)) from error


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Name the object of a failure; each store has exceptions of its own."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StoreFailed(f"{url}: {type(error).__name__}: {error}") from error


def matching_objects(url: str) -> list[tuple[str, int | None]]:
    """URL and bytes of what a URL or a pattern names, in order; a folder has no bytes.

    Raises:
        StoreFailed: The store cannot be read.
    """
    files, root = _open(url)
    with _explained(url):
        try:
            is_pattern = glob.has_magic(root)
            found = files.glob(root, detail=True) if is_pattern else {root: files.info(root)}
        except FileNotFoundError:
            return []
    return [
        (files.unstrip_protocol(path), None if info["type"] == "directory" else info["size"])
        for path, info in sorted(found.items())
    ]


def objects_below(url: str) -> dict[str, int]:
    """Bytes of all objects below a folder, by their names in it, in order.

    Raises:
        StoreFailed: The store cannot be read.
    """
    files, root = _open(url)
    with _explained(url):
        found = files.find(root, detail=True)
    return {path[len(root) + 1 :]: info["size"] for path, info in sorted(found.items())}


def read_object(url: str) -> bytes:
    """Read an object.

    Raises:
        FileNotFoundError: There is no such object.
        StoreFailed: The store cannot be read.
    """
    files, path = _open(url)
    with _explained(url):
        content: bytes = files.cat_file(path)
    return content


@contextmanager
def opened_object(url: str) -> Iterator[IO[bytes]]:
    """Open an object for reading anywhere in it.

    Raises:
        StoreFailed: It cannot be opened.
    """
    files, path = _open(url)
    with _explained(url):
        file = files.open(path, "rb")
    with file:
        yield file


class StoreFolder:
    """The folder of a bulk job in a store. An object appears whole, when all of it is written.

    Raises:
        StoreFailed: By all methods, if the store fails.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._files, self._root = _open(url)

    def names(self, folder: str = "") -> list[str]:
        """Names in the folder or in a folder of it; none if there is no such folder."""
        # Other machines write parts.
        self._files.invalidate_cache()
        with _explained(self._url):
            try:
                found = self._files.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def read(self, name: str) -> bytes:
        """Content of an object."""
        return read_object(f"{self._url}/{name}")

    def write(self, name: str, content: str) -> None:
        """Write an object."""
        with _explained(f"{self._url}/{name}"):
            self._files.pipe_file(self._place(name), content.encode())

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError), _explained(f"{self._url}/{name}"):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Give the path of a temporary file that is uploaded if the block ends without an error."""
        with tempfile.TemporaryDirectory() as scratch:
            yield (path := Path(scratch) / "content")
            with _explained(f"{self._url}/{name}"):
                self._files.put_file(str(path), self._place(name))

    def _place(self, name: str) -> str:
        place = f"{self._root}/{name}"
        # A store has no folders, and may forbid to ask for its buckets.
        if getattr(self._files, "local_file", False):
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
        return place

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open an object for reading."""
        with opened_object(f"{self._url}/{name}") as file:
            yield file

    def tidy(self) -> None:
        """Nothing: a writer that is killed leaves no object."""
