"""Places of bulk jobs, in a file system or an object store, through fsspec."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from model.stores import is_url, open_store
from tipserve_cli.engine import UserError


def open_place(place: str) -> tuple[Any, str]:
    """Fsspec's file system of a path or URL, and the path in it."""
    return open_store(place) if is_url(place) else (LocalFileSystem(), os.path.abspath(place))


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
