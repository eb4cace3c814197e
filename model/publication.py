"""A repository of one model's published packages: publish, roll back, and remove old versions.

```
REPOSITORY/                         for one model, such as /models/student
  20261125T201500Z-3fa9c1d2e4b5/    a version: time of publication, digest of its manifest
  current -> 20261125T...           link to the version to be served, replaced atomically
  .history                          names in the order of publication, the last one last
  .20261125T...-3fa9c1d2e4b5.new/   a copy that is in progress, or whose process died
```

A package comes from a folder or, by fsspec, from an object store: `s3://bucket/student`.

A version never changes, so a server that names one loads the same files at every start.
Publishing removes none: the repository does not know which version a server uses. `prune` removes
old versions, except those that its caller lists and those that a link of any name leads to.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from model.files import atomic_write, locked, rename, sync_tree
from model.graphs import DENSE_TASKS, Precision, graph_file
from model.manifest import MANIFEST_NAME, Manifest
from model.package import MAX_MANIFEST_BYTES, PackageError, open_package, parse_manifest
from model.stores import StoreError, is_url, open_store

CURRENT: Final = "current"
HISTORY: Final = ".history"
VERSION: Final = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
DIGEST_DIGITS: Final = 12
_PARTIAL: Final = ".new"
# Copies one file of a package, given its name in the manifest, to a path.
Copy = Callable[[str, Path], object]
REDUCED_HEADS: Final = frozenset(
    graph_file(task, precision)
    for task in DENSE_TASKS
    for precision in get_args(Precision)
    if precision != "fp32"
)


@dataclass(frozen=True, slots=True)
class Repository:
    """The published packages of one model, below one folder."""

    folder: Path

    def versions(self) -> list[str]:
        """Names of all versions, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if VERSION.fullmatch(path.name) and path.is_dir()
        )

    def current(self) -> str | None:
        """The version to be served; None if there is none."""
        link = self.folder / CURRENT
        return os.readlink(link) if link.is_symlink() else None

    def publish(
        self,
        source: str | Path,
        *,
        now: datetime | None = None,
    ) -> Path:
        """Copy a package into the repository and make it current, unless it is published already.

        Args:
            source: A package's folder, `bundled`, or the URL of a package in an object store.
            now: Time of publication; None for the clock's.

        Returns:
            The version's folder.

        Raises:
            PackageError: The package is broken or cannot be read, or its graphs are not proven;
                nothing changes.
        """
        raw, copy = _from_store(source) if is_url(str(source)) else _from_folder(source)
        manifest = parse_manifest(raw, f"{source}/{MANIFEST_NAME}")
        check_proven(manifest)
        digest = hashlib.sha256(raw).hexdigest()[:DIGEST_DIGITS]
        with self._writing():
            found = next((name for name in self.versions() if name.endswith(f"-{digest}")), None)
            if found is None:
                time = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
                found = f"{time}-{digest}"
                self._copy(raw, manifest.files, found, copy=copy)
            else:
                open_package(self.folder / found)
            history = [*(name for name in self.history() if name != found), found]
            atomic_write(self.folder / HISTORY, "\n".join(history) + "\n")
            self._point_to(found)
        return self.folder / found

    def roll_back(self, version: str | None = None) -> Path:
        """Make an older version the current one.

        Args:
            version: Name of the version; None for the one published before the current.

        Returns:
            Its folder.

        Raises:
            PackageError: There is no such version, or it is broken; nothing changes.
        """
        if not self.folder.is_dir():
            raise PackageError(f"there is no repository {self.folder}; publish a package first")
        with self._writing():
            names, current = self.versions(), self.current()
            if version is None:
                history = self.history()
                earlier = history[: history.index(current)] if current in history else []
                if not earlier:
                    raise PackageError(
                        f"{self.folder} holds no version before {current or 'any'}; it has "
                        f"{', '.join(names) or 'none'}"
                    )
                version = earlier[-1]
            if version not in names:
                raise PackageError(
                    f"{self.folder} has no version {version!r}: it has {', '.join(names) or 'none'}"
                )
            open_package(self.folder / version)
            self._point_to(version)
        return self.folder / version

    def prune(self, *, keep: int, in_service: Collection[str]) -> list[str]:
        """Remove old versions; each is renamed first, so that no partial version is found.

        Args:
            keep: Number of newest versions to keep. Versions with a link are kept too.
            in_service: Versions that replicas serve or a Deployment names; all of them are kept.
                Versions of other repositories may be among them.

        Returns:
            The names of the versions that were removed.

        Raises:
            ValueError: `keep` is less than 1, or `in_service` has another name than a version's;
                nothing changes.
        """
        if keep < 1:
            raise ValueError("--keep must be at least 1")
        wrong = [name for name in in_service if not VERSION.fullmatch(name)]
        if wrong:
            raise ValueError(
                f"--in-service: {wrong[0]!r} is no version such as 20261125T201500Z-3fa9c1d2e4b5"
            )
        with self._writing():
            links = (path for path in self.folder.iterdir() if path.is_symlink())
            # By name, as the volume may be mounted elsewhere now.
            staying = {*in_service, *(Path(os.readlink(link)).name for link in links)}
            leaving = [name for name in self.history()[:-keep] if name not in staying]
            for name in leaving:
                hidden = self.folder / f".{name}{_PARTIAL}"
                (self.folder / name).rename(hidden)
                # NFS keeps files that a server has open; the next publication tries again.
                shutil.rmtree(hidden, ignore_errors=True)
        return leaving

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Exclude other publications."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            yield

    def history(self) -> list[str]:
        """All versions in the order of publication; one published again counts as new.

        Names do not tell it: two versions may have been published within a second.
        """
        path, versions = self.folder / HISTORY, self.versions()
        noted = path.read_text(encoding="ascii").split() if path.exists() else []
        unknown = [name for name in versions if name not in noted]  # older than the file
        return unknown + [name for name in noted if name in versions]

    def _copy(self, raw: bytes, names: Iterable[str], version: str, *, copy: Copy) -> None:
        """Copy under a temporary name, verify the copy, then rename it."""
        for left in self.folder.glob(f".*Z-*{_PARTIAL}"):
            shutil.rmtree(left, ignore_errors=True)
        partial = self.folder / f".{version}{_PARTIAL}"
        try:
            for name in names:
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(name, target)
                target.chmod(0o644)
            # What its name was made of, even if the source has another one by now.
            (partial / MANIFEST_NAME).write_bytes(raw)
            (partial / MANIFEST_NAME).chmod(0o644)
            for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
                folder.chmod(0o755)
            sync_tree(partial)
            # Verifies the copy and not the original.
            open_package(partial)
            rename(partial, self.folder / version)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _point_to(self, version: str) -> None:
        temporary = self.folder / f".{CURRENT}{_PARTIAL}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(version)
        rename(temporary, self.folder / CURRENT)


def _from_folder(source: str | Path) -> tuple[bytes, Copy]:
    """The manifest of a verified package, and what copies its files."""
    folder = open_package(source).path
    return (folder / MANIFEST_NAME).read_bytes(), lambda name, target: shutil.copyfile(
        folder / name, target
    )


def _from_store(source: str | Path) -> tuple[bytes, Copy]:
    """The manifest of a package in an object store, and what copies its files, unverified.

    Raises:
        PackageError: The store's library is missing, or it has no such manifest.
    """
    try:
        files, root = open_store(str(source))
    except StoreError as error:
        raise PackageError(str(error)) from error

    def copy(name: str, target: Path) -> None:
        with _explained(f"{source}/{name}"):
            files.get_file(f"{root}/{name}", str(target))

    with _explained(f"{source}/{MANIFEST_NAME}"):
        return files.cat_file(f"{root}/{MANIFEST_NAME}", end=MAX_MANIFEST_BYTES), copy


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Name the object that cannot be copied; each store has exceptions of its own."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PackageError(
            f"{place} cannot be copied: {reason}; check the URL and the rights"
        ) from error


def check_proven(manifest: Manifest) -> None:
    """Check that every graph passed the parity gate, by the manifest.

    Each needs one passed entry, and none in float32 may have failed. A head's graph in less than
    float32 may have failed, because the float32 graph is then served in its place.

    Raises:
        PackageError: A graph was never compared, or differs.
    """
    for file in (name for name in manifest.files if name.endswith(".onnx")):
        entries = [entry for entry in manifest.parity if entry.file == file]
        wrong = [entry for entry in entries if entry.precision == "fp32" and not entry.passed]
        if wrong:
            raise PackageError(
                f"{file} of {manifest.name!r} differs from the model on {wrong[0].runtime}: "
                f"{'; '.join(wrong[0].failures)}; export it again"
            )
        is_replaced = file in REDUCED_HEADS and bool(entries)
        if not is_replaced and not any(entry.passed for entry in entries):
            raise PackageError(
                f"{file} of {manifest.name!r} was never compared with the model; "
                "measure it with `python -m model check --write`, or export it again"
            )
