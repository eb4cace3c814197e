"""Signals, and the memory of swapped models."""

import signal
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.package import STUDENT_FOLDER, ModelPackage

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

RunService = Callable[..., Any]
LIMIT_S = 60.0


@pytest.mark.parametrize(
    ("first", "number"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,) * 2],
)
def test_the_first_signal_drains_and_the_second_ends_the_program_at_once(
    run_program: Any, tiny_package: ModelPackage, first: signal.Signals, number: signal.Signals
) -> None:
    program = run_program(f"--model={tiny_package.path}", "--drain-delay-s=1000")
    try:
        program.wait_for("ready")
        program.process.send_signal(first)
        program.wait_for("draining")
        program.process.send_signal(number)
        assert program.process.wait(LIMIT_S) == -number
    finally:
        program.end()


def load(service: "Service", name: str, package: str) -> httpx.Response:
    url = f"http://127.0.0.1:{service.ports['http']}/v2/repository/models/{name}/load"
    return httpx.post(url, json={"parameters": {"package": package}}, timeout=LIMIT_S)


def resident_bytes(service: "Service") -> float:
    return float(service.metric("process_resident_memory_bytes"))


def test_memory_is_freed_after_swaps(run_service: RunService, tmp_path: Path) -> None:
    for name in ("bundled", "again"):
        copytree(STUDENT_FOLDER, tmp_path / name)
    flags = ("--lanes=1", "--enable-management", f"--model-repository={tmp_path}")
    with run_service(*flags) as service:
        before = resident_bytes(service)
        for package in ("bundled", "again"):
            assert load(service, "swapped", package).status_code == 200
        sizes = []
        for package in ("bundled", "again") * 4:
            assert load(service, "swapped", package).status_code == 200
            sizes.append(resident_bytes(service))
        one_model = sizes[0] - before
        unloaded = [line for line in service.program.log if '"unloaded"' in line]
    # Documented limit: eight swaps keep less than the memory of one and a half models.
    assert sizes[-1] - sizes[0] < 1.5 * one_model, [round(s / 2**20) for s in (before, *sizes)]
    assert len(unloaded) >= 7, "or there was nothing to give back"
