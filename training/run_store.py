"""Copies a run to an object store, and back to a machine that has none of it.

fsspec opens the store by its URL: `s3://` needs the package s3fs, `gs://` gcsfs, `memory://` and
`file://` nothing. A checkpoint counts as complete once its header is there, which is copied last.
"""

from pathlib import Path

from model.stores import StoreError, open_store
from training.checkpoint import CHECKPOINT_FOLDER, HEADER_FILE, checkpoint_step
from training.observation import BOARD_FOLDER

_LEFT_OUT = (CHECKPOINT_FOLDER, BOARD_FOLDER, "model")
"""Other checkpoints, and what a resumed run makes again."""


class RunStore:
    """The copy of one run below a URL such as "s3://bucket/runs".

    Raises:
        ValueError: There is no such kind of store, or its package is not installed.
    """

    def __init__(self, run: Path, url: str) -> None:
        self._run = run
        try:
            self._files, root = open_store(url)
        except StoreError as error:
            raise ValueError(f"checkpoint_store={error}") from error
        self._root = f"{root}/{run.name}"

    def put(self, checkpoint: Path, *, keep: int) -> None:
        """Copy a checkpoint with the run's small files, and remove old checkpoints but `keep`."""
        for path in self._run.rglob("*"):
            if path.is_file() and path.relative_to(self._run).parts[0] not in _LEFT_OUT:
                self._put(path)
        parts = [path for path in checkpoint.rglob("*") if path.is_file()]
        for path in sorted(parts, key=lambda path: path.name == HEADER_FILE):
            self._put(path)
        for name in self._complete()[:-keep]:
            folder = f"{self._root}/{CHECKPOINT_FOLDER}/{name}"
            self._files.rm(f"{folder}/{HEADER_FILE}")  # first, so that no half of it is found
            self._files.rm(folder, recursive=True)

    def fetch(self) -> None:
        """Copy the run here if the store's newest checkpoint is newer than this folder's."""
        newest = self._complete()[-1:]
        if not newest or int(newest[0].removeprefix("step-")) <= checkpoint_step(self._run):
            return
        print(f"continues from {self._root}/{CHECKPOINT_FOLDER}/{newest[0]}", flush=True)
        own = f"{CHECKPOINT_FOLDER}/{newest[0]}/"
        found = [str(path) for path in self._files.find(self._root)]
        names = [path[path.index(self._root) + len(self._root) + 1 :] for path in found]
        for path, name in sorted(
            zip(found, names, strict=True), key=lambda pair: pair[1].endswith(HEADER_FILE)
        ):
            if name.startswith(own) or not name.startswith(CHECKPOINT_FOLDER):
                place = self._run / name
                place.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(path, str(place))

    def _put(self, path: Path) -> None:
        place = f"{self._root}/{path.relative_to(self._run).as_posix()}"
        self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(path), place)

    def _complete(self) -> list[str]:
        """Names of the complete checkpoints, the newest last."""
        headers = self._files.glob(f"{self._root}/{CHECKPOINT_FOLDER}/step-*/{HEADER_FILE}")
        return sorted(str(path).split("/")[-2] for path in headers)
