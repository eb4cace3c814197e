"""The folder of converted packages: found by what they were made of, made once, never half.

```
packages/NAME-KEY/        a package; NAME for people, KEY by what it was made of
packages/.NAME-KEY.*      one that is being written, or was when its process died
locks/NAME-KEY            held by whoever writes it
revisions/OWNER--NAME@REVISION    the commit that a hub's revision was, when it was last asked
```
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from model.conversion.errors import CacheError
from model.conversion.lock import Progress, locked, locked_if_free
from model.conversion.source import HubSource
from model.package import ModelPackage, PackageError, open_package

VARIABLE: Final = "TIPSERVE_CACHE"
STAGING: Final = re.compile(r"\.(?P<entry>.+-[0-9a-f]{20})\..+")
KEY_DIGITS: Final = 20
COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def default_cache(environment: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/tipserve`, or `~/.cache/tipserve`; for a user without a home /var/cache."""
    if base := environment.get("XDG_CACHE_HOME"):
        return Path(base) / "tipserve"
    try:
        return Path.home() / ".cache" / "tipserve"
    except RuntimeError:
        return Path("/var/cache/tipserve")


class PackageCache:
    """Converted packages below one folder. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._packages = root / "packages"
        self._locks = root / "locks"
        self._revisions = root / "revisions"

    def folder(self, name: str, key: str) -> Path:
        """Where the package with this key is, or will be."""
        return self._packages / f"{name}-{key}"

    def find(self, name: str, key: str, *, verify: bool) -> ModelPackage | None:
        """The package with this key; None where there is none.

        Raises:
            PackageError: It is broken.
        """
        folder = self.folder(name, key)
        return open_package(folder, verify=verify) if folder.exists() else None

    @contextmanager
    def writing(self, name: str, key: str, progress: Progress) -> Iterator[Path]:
        """Hold the right to write the package with this key; gives its folder.

        Raises:
            CacheError: The folder cannot be written.
        """
        try:
            for folder in (self._packages, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(self.root, error) from error
        folder = self.folder(name, key)
        with locked(self._locks / folder.name, progress):
            yield folder

    def remove_leftovers(self, mine: Path | None = None) -> None:
        """Remove what dead processes left: staging whose lock nobody holds, and one's own.

        Args:
            mine: The folder that this process has the right to write, if it has one.

        Raises:
            CacheError: The folder cannot be written.
        """
        for path in self._packages.glob(".*"):
            match = STAGING.fullmatch(path.name)
            if match is None:
                continue
            if mine is not None and match["entry"] == mine.name:
                shutil.rmtree(path, ignore_errors=True)
                continue
            with locked_if_free(self._locks / match["entry"]) as is_dead:
                if is_dead:
                    shutil.rmtree(path, ignore_errors=True)

    def known_commit(self, source: HubSource) -> str | None:
        """The commit that a revision was when the hub was last asked, if it ever was."""
        try:
            commit = self._revision_file(source).read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def remember_commit(self, source: HubSource, commit: str) -> None:
        """Note which commit a revision is now."""
        path = self._revision_file(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(commit + "\n", encoding="utf-8")
        temporary.replace(path)

    def _revision_file(self, source: HubSource) -> Path:
        name = f"{source.repository.replace('/', '--')}@{source.revision}"
        return self._revisions / quote(name, safe="@")


def unusable(root: Path, error: OSError) -> CacheError:
    """The folder is of no use to this process."""
    return CacheError(
        f"the cache {root} cannot be written ({error.strerror}); name another folder by --cache "
        f"or {VARIABLE}"
    )


def check_space(folder: Path, needed_bytes: int) -> None:
    """See that a disk has room.

    Args:
        folder: On the disk; it or one above it is there.
        needed_bytes: What will be written.

    Raises:
        CacheError: It has less.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free_bytes = shutil.disk_usage(there).free
    if free_bytes < needed_bytes:
        raise CacheError(
            f"converting needs about {needed_bytes / 1e9:.1f} GB in {folder}, and its disk has "
            f"{free_bytes / 1e9:.1f} GB free; make room, or name another folder"
        )


def discard(folder: Path) -> None:
    """Take a broken package out of the way at once, then remove it."""
    aside = folder.with_name(f".{folder.name}.broken")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


__all__ = [
    "PackageCache",
    "PackageError",
    "check_space",
    "default_cache",
    "discard",
    "unusable",
]
