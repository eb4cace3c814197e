"""Several processes of one server: how they end, and wrong settings."""

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from model.package import ModelPackage

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Program

LIMIT_S = 60.0
TWO = ("--workers=2", "--lanes=2", "--pool-threads=2")


def test_workers_end_when_their_supervisor_is_killed(
    run_program: "type[Program]", tiny_package: ModelPackage
) -> None:
    program = run_program(f"--model={tiny_package.path}", *TWO)
    program.wait_for("all workers are ready")
    program.process.kill()
    program.process.wait(LIMIT_S)
    # Standard error closes only with the last process that has it.
    program.reader.join(LIMIT_S)
    assert not program.reader.is_alive()
    assert len(program.records("stopped")) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--workers=2", "--model=no/such/folder"], 1, "no folder"),
        (
            ["--workers=2", "--http-port={taken}"],
            1,
            "the workers cannot listen on 127.0.0.1, port {taken}",
        ),
        (["--workers=2", "--enable-management"], 2, "enable_management needs workers=1"),
        (["--workers=none"], 2, "write a number of processes above 0, or auto"),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments: list[str], status: int, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--host=127.0.0.1"]
        given = [argument.format(taken=port) for argument in arguments]
        result = subprocess.run(
            [sys.executable, "-m", "service", *ports, *given],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert result.returncode == status, result.stderr
    assert words.format(taken=port) in result.stderr
    assert "Traceback" not in result.stderr
