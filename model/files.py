"""Files and folders that appear whole or not at all, and locks between processes."""

import fcntl
import glob
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

TEMPORARY_SUFFIX: Final = ".tmp"
LOCK_POLL_S: Final = 0.2
LOCK_REMINDER_S: Final = 30.0


class LockHeld(OSError):
    """Another process or thread holds the lock."""


class LocksUnsupported(OSError):
    """The file system has no locks."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file that becomes `path` when the block ends without an error.

    It is hidden in the same folder. A killed process leaves it there; `remove_temporaries` removes
    it.

    Raises:
        OSError: The file cannot be written or renamed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        sync(temporary)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file; after a crash it holds the old content or the new one, never a part.

    Raises:
        OSError: The file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_temporaries(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left; nothing may be writing it now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        left.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder, which is synced, so that the new name survives a power failure."""
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Write a folder and everything below it to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; False if another has it, or LocksUnsupported."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LocksUnsupported(error.errno, error.strerror, file.name) from error
    return True


@contextmanager
def locked(
    path: Path,
    *,
    wait: bool = True,
    on_wait: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold a lock between processes; it is released when the block ends or the process dies.

    It also excludes other machines that share the file system, if that supports `flock`.

    Args:
        path: The lock file. It is created, and stays after the release.
        wait: Wait until the lock is free; otherwise fail at once.
        on_wait: Called with the holder's name at first and every `LOCK_REMINDER_S` of waiting.
        sleep: Waits for so many seconds.
        clock: Gives the time in seconds.

    Raises:
        LockHeld: The lock is not free, and `wait` is false.
        LocksUnsupported: The file system has no locks.
        OSError: The lock file cannot be written.
    """
    with path.open("a+", encoding="utf-8") as file:
        reminded_at = -LOCK_REMINDER_S
        # Polled, so that the holder can be named again while the wait goes on for minutes.
        while not try_lock(file):
            if not wait:
                raise LockHeld(f"{path} is locked by another process")
            if clock() - reminded_at >= LOCK_REMINDER_S:
                reminded_at = clock()
                file.seek(0)
                on_wait(file.read().strip() or "another process")
            sleep(LOCK_POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
