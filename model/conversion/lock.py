"""A lock between processes, also on several machines with one volume; it ends with its holder."""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from model.conversion.errors import CacheError

POLL_S: Final = 0.2
# How often whoever waits hears of it.
REMIND_S: Final = 30.0

Progress = Callable[[str], None]


@contextmanager
def locked(
    path: Path,
    progress: Progress,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold a lock, as soon as nobody else does.

    Args:
        path: The lock's file, which is made and stays.
        progress: Told who is waited for.
        pause: Waits so many seconds.
        clock: In seconds.

    Raises:
        CacheError: The file cannot be written, or the file system has no locks.
    """
    with _open(path) as file:
        said_at = -REMIND_S
        while not _take(file):
            if clock() - said_at >= REMIND_S:
                said_at = clock()
                file.seek(0)
                holder = file.read().strip() or "another process"
                progress(f"waiting for {holder}, which prepares the same model")
            pause(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock that nobody holds; gives False, and holds nothing, where somebody does."""
    with _open(path) as file:
        yield _take(file)


def _open(path: Path) -> IO[str]:
    """The lock's file; it is made where there is none."""
    try:
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise CacheError(
            f"{path} cannot be written ({error.strerror}); name another cache folder by --cache or "
            "TIPSERVE_CACHE"
        ) from error


def _take(file: IO[str]) -> bool:
    """Take the lock if it is free; closing the file gives it back."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise CacheError(
            f"{file.name} cannot be locked ({error.strerror}); name a cache folder on a file "
            "system with locks by --cache or TIPSERVE_CACHE"
        ) from error
    return True
