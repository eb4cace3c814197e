"""Several processes of one server end together, and a port that is taken ends the start."""

import socket
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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named_in_one_line(
    run_program: "type[Program]", tiny_package: ModelPackage, workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = (f"--model={tiny_package.path}", f"--workers={workers}")
        program = run_program(*arguments, f"--http-port={port}")
        assert program.process.wait(LIMIT_S) == 1
    program.end()
    assert str(port) in program.log[-1]
    assert "Traceback" not in "".join(program.log)
