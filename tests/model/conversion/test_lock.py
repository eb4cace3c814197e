"""One process holds a lock, the others wait and hear for whom; it ends with its holder."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.conversion.errors import CacheError
from model.conversion.lock import locked, locked_if_free

HOLDER = """
import sys
from pathlib import Path
from model.conversion.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_another_process_is_waited_for_and_named(path: Path) -> None:
    said: list[str] = []
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with locked_if_free(path) as is_free:
                assert not is_free

            def pause(_: float) -> None:
                if len(said) == 2:
                    holder.kill()  # as if it had died: nothing is given back by hand
                    holder.wait()

            times = iter(range(0, 1000, 20))
            with locked(path, said.append, pause=pause, clock=lambda: next(times)):
                with locked_if_free(path) as is_free:
                    assert not is_free
                assert f"process {os.getpid()} on " in path.read_text(encoding="utf-8")
        finally:
            holder.kill()
    assert said == [said[0]] * 2
    assert said[0].startswith(f"waiting for process {holder.pid} on ")


def test_a_lock_is_free_again_after_its_block(path: Path) -> None:
    for _ in range(2):
        with locked(path, lambda _: None):
            pass
        with locked_if_free(path) as is_free:
            assert is_free


def test_a_lock_that_cannot_be_written_is_said(path: Path) -> None:
    path.mkdir()
    with (
        pytest.raises(CacheError, match=r"lock cannot be written \(Is a dir.*TIPSERVE_CACHE"),
        locked(path, print),
    ):
        pass


def test_a_file_system_without_locks_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(CacheError, match=r"No locks available.*TIPSERVE_CACHE"),
        locked(path, print),
    ):
        pass
