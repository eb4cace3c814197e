"""The folder of converted packages, each under a key of everything it was made from.

```
packages/NAME-KEY/        a package; NAME is for people, KEY is a digest
packages/.NAME-KEY.*      a package that is being written, or whose writer died
locks/NAME-KEY            locked by the writer
revisions/OWNER--NAME@REVISION    the last known commit of a revision on the hub
```
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import JsonValue

from model.conversion.errors import CacheError, SourceError
from model.conversion.source import HubSource
from model.files import LockHeld, atomic_write, locked
from model.package import ModelPackage, Progress, open_package, sha256

VARIABLE: Final = "TIPSERVE_CACHE"
STAGING: Final = re.compile(r"\.(?P<entry>.+-[0-9a-f]{20})\..+")
KEY_DIGITS: Final = 20
# Part of every key. Increased when the same checkpoint is exported to another package.
EXPORT_FORMAT: Final = 8
# Suffixes of the files that are read; others, such as cards and images, do not count.
READ_SUFFIXES: Final = frozenset({".json", ".model", ".npz", ".safetensors", ".txt", ".zip"})


def default_cache(environment: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/tipserve` or `~/.cache/tipserve`; below /var/cache without a home."""
    if base := environment.get("XDG_CACHE_HOME"):
        return Path(base) / "tipserve"
    try:
        return Path.home() / ".cache" / "tipserve"
    except RuntimeError:
        return Path("/var/cache/tipserve")


class PackageCache:
    """Converted packages below one folder, which several processes may use at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._packages = root / "packages"
        self._locks = root / "locks"

    def folder(self, name: str, key: str) -> Path:
        """Path of the package with this key, whether or not it exists."""
        return self._packages / f"{name}-{key}"

    def find(self, name: str, key: str, *, verify: bool) -> ModelPackage | None:
        """Open the package with this key; None if there is none, PackageError if it is broken."""
        folder = self.folder(name, key)
        return open_package(folder, verify=verify) if folder.exists() else None

    @contextmanager
    def writing(self, name: str, key: str, progress: Progress) -> Iterator[Path]:
        """Lock the package with this key for writing, and remove what dead processes left.

        Raises:
            CacheError: The folder cannot be written or locked.
        """
        folder = self.folder(name, key)
        lock = locked(
            self._locks / folder.name,
            on_wait=lambda holder: progress(f"waiting for {holder}, which prepares the same model"),
        )
        with ExitStack() as stack:
            try:
                for place in (self._packages, self._locks):
                    place.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock)
                self._remove_leftovers(folder.name)
            except OSError as error:
                raise CacheError(
                    f"{self.root} cannot be written or locked ({error.strerror}); name another "
                    f"cache folder by --cache or {VARIABLE}"
                ) from error
            yield folder

    def _remove_leftovers(self, mine: str) -> None:
        """Remove staging folders of dead processes, and of the entry that this one has locked."""
        for path in self._packages.glob(".*"):
            match = STAGING.fullmatch(path.name)
            if match is None:
                continue
            with ExitStack() as stack:
                if match["entry"] != mine:
                    try:
                        stack.enter_context(locked(self._locks / match["entry"], wait=False))
                    except LockHeld:
                        continue
                shutil.rmtree(path, ignore_errors=True)

    def known_commit(self, source: HubSource) -> str | None:
        """The last known commit of a revision, for a server without the hub's library; or None."""
        try:
            return self._revision_file(source).read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def remember_commit(self, source: HubSource, commit: str) -> None:
        """Write down the commit of a revision, unless the cache is mounted read-only."""
        path = self._revision_file(source)
        if self.known_commit(source) != commit:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, commit + "\n")

    def _revision_file(self, source: HubSource) -> Path:
        name = f"{source.repository.replace('/', '--')}@{source.revision}"
        return self.root / "revisions" / quote(name, safe="@")


def discard(folder: Path) -> None:
    """Rename a broken package, then remove it, so that no other process opens it."""
    aside = folder.with_name(f".{folder.name}.broken")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def content_of(path: Path) -> dict[str, JsonValue]:
    """The identity of a checkpoint's folder: SHA-256 and size of each of its files.

    Raises:
        SourceError: A file cannot be read.
    """
    try:
        return {
            file.name: {"sha256": sha256(file), "size_bytes": file.stat().st_size}
            for file in sorted(path.iterdir())
            if file.suffix in READ_SUFFIXES and file.is_file()
        }
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be read ({error.strerror})") from error


def key_of(base: JsonValue, dense: JsonValue, precisions: Sequence[str]) -> str:
    """The cache key of a package, from the identities of model and heads, and the precisions."""
    made_of = {
        "format": EXPORT_FORMAT,
        "base": base,
        "dense": dense,
        # An option of earlier versions, whose cached packages are found so.
        "depth_activation": None if dense is None else "linear",
        "precisions": sorted(precisions),
    }
    text = json.dumps(made_of, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
