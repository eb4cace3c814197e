"""A repository of one model's published packages.

```
REPOSITORY/                         for one model, such as /models/student
  20261125T201500Z-3fa9c1d2e4b5/    a version: time of publication, digest of its manifest
  current -> 20261125T...           link to the version to be served, replaced atomically
  .20261125T...-3fa9c1d2e4b5.*/     a copy that is in progress, or whose process died
```

A package comes by fsspec from a folder or from an object store: `s3://bucket/student`. A version
never changes, so a server that names one loads the same files at every start. Publishing a version
again makes it the current one. Nothing here removes a version: the repository does not know which
one a server uses.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from model.files import locked, rename
from model.graphs import DENSE_TASKS, FOREGROUND_FILE, Precision, graph_file
from model.manifest import MANIFEST_NAME, TORCH_FILE, Manifest
from model.package import (
    MAX_MANIFEST_BYTES,
    PackageError,
    open_package,
    package_folder,
    parse_manifest,
    staged,
)
from model.stores import StoreError, is_url, open_store

CURRENT: Final = "current"
VERSION: Final = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
DIGEST_DIGITS: Final = 12
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
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path.name for path in paths if VERSION.fullmatch(path.name) and path.is_dir())

    def current(self) -> str | None:
        """The version to be served; None if there is none."""
        link = self.folder / CURRENT
        return os.readlink(link) if link.is_symlink() else None

    def publish(self, source: str | Path, *, now: datetime | None = None) -> Path:
        """Copy a package into the repository and make it current, unless it is published already.

        Args:
            source: A package's folder, `bundled`, or the URL of a package in an object store.
            now: Time of publication; None for the clock's.

        Returns:
            The version's folder.

        Raises:
            PackageError: The package is broken, cannot be read or is not proven; nothing changes.
        """
        place = str(source) if is_url(str(source)) else str(package_folder(source).absolute())
        try:
            files, root = open_store(place)
        except StoreError as error:
            raise PackageError(str(error)) from error
        with _explained(f"{place}/{MANIFEST_NAME}"):
            raw = files.cat_file(f"{root}/{MANIFEST_NAME}", end=MAX_MANIFEST_BYTES)
        manifest = parse_manifest(raw, f"{place}/{MANIFEST_NAME}")
        check_proven(manifest)
        digest = hashlib.sha256(raw).hexdigest()[:DIGEST_DIGITS]
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock"):
            found = next((name for name in self.versions() if name.endswith(f"-{digest}")), None)
            if found is None:
                found = f"{now or datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest}"
                for left in self.folder.glob(".*Z-*"):  # copies of processes that died
                    shutil.rmtree(left, ignore_errors=True)
                with staged(self.folder / found) as staging:
                    for name in manifest.files:
                        if name == TORCH_FILE and not files.exists(f"{root}/{name}"):
                            continue  # as in a wheel of this program
                        (staging / name).parent.mkdir(parents=True, exist_ok=True)
                        with _explained(f"{place}/{name}"):
                            files.get_file(f"{root}/{name}", str(staging / name))
                    # What its name was made of, even if the source has another one by now.
                    (staging / MANIFEST_NAME).write_bytes(raw)
                    open_package(staging)
            self._serve(found)
        return self.folder / found

    def _serve(self, version: str) -> None:
        """Verify a version, and let the link lead to it."""
        open_package(self.folder / version)
        temporary = self.folder / f".{CURRENT}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(version)
        rename(temporary, self.folder / CURRENT)


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Name the object that cannot be copied; each store has exceptions of its own."""
    try:
        yield
    except Exception as error:
        raise PackageError(
            f"{place} cannot be copied: {type(error).__name__}: {error}; check the place and the "
            "rights"
        ) from error


def check_proven(manifest: Manifest) -> None:
    """Check that every graph passed the parity gate, by the manifest.

    Each needs one passed entry, and none in float32 may have failed. A head in less than float32
    may, as its float32 graph is then served. The network that finds people is no graph of the
    model: a test compares it with its source.

    Raises:
        PackageError: A graph was never compared, or differs.
    """
    for file in (
        name for name in manifest.files if name.endswith(".onnx") and name != FOREGROUND_FILE
    ):
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
