"""Files appear whole or not at all, and one process at a time holds a lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.files import LockHeld, atomic_file, atomic_write, locked

HOLDER = """
import sys
from pathlib import Path
from model.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that were synced, in order."""
    names: list[str] = []

    def record(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", record)
    return names


def test_a_written_file_and_its_name_reach_the_disk(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert [name.startswith(".a.json.") for name in synced] == [True, False] * 2
    assert synced[1::2] == [tmp_path.name] * 2


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_waiting_process_names_the_holder_and_gets_the_lock_when_it_dies(tmp_path: Path) -> None:
    path, holders = tmp_path / "lock", list[str]()
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(LockHeld), locked(path, wait=False):
                pass

            def sleep(_: float) -> None:
                if len(holders) == 2:
                    holder.kill()  # the kernel releases the lock
                    holder.wait()

            times = iter(range(0, 1000, 20))
            with locked(path, on_wait=holders.append, sleep=sleep, clock=lambda: next(times)):
                assert path.read_text().startswith(f"process {os.getpid()} on ")
        finally:
            holder.kill()
    assert holders == [holders[0]] * 2
    assert holders[0].startswith(f"process {holder.pid} on ")
