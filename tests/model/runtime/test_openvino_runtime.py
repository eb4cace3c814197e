"""OpenVINO: bf16 for matrix products only, one core per process, and memory of large calls."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage
from model.runtime.machine import this_hardware
from model.runtime.openvino_runtime import import_openvino, openvino_core, read_for_bf16


def outputs(model: Any, hint: str, pixels_B3HW: np.ndarray) -> list[np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    results = openvino_core().compile_model(model, "CPU", settings)(pixels_B3HW)
    return [array.copy() for array in results.values()]


AUDITED = """
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
watched = ("socket.getaddrinfo", "socket.connect", "os.fork", "subprocess.Popen")
def write(event, _):
    if event in watched:
        os.write(log, f"{event}\\n".encode())
sys.addaudithook(write)
exec(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "is_quiet"),
    [
        ("from model.runtime.openvino_runtime import openvino_core; openvino_core()", True),
        ("import openvino", False),
    ],
)
def test_openvino_sends_no_telemetry(
    tmp_path: Path, project_root: Path, code: str, is_quiet: bool
) -> None:
    log = tmp_path / "events"
    # Its telemetry is off where CI is set, so the second case shows that the test sees it.
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(project_root), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", AUDITED, str(log), code]
    subprocess.run(command, check=True, timeout=120, env=environment)
    is_seen = bool(log.read_text(encoding="utf-8")) or (tmp_path / "intel").exists()
    assert is_seen is not is_quiet


def test_a_marked_graph_is_the_same_in_float32_and_nearer_to_it_in_bf16(
    tiny_package: ModelPackage,
) -> None:
    path = tiny_package.file(VISION_FILE)
    pixels_B3HW = np.random.default_rng(0).random((4, 3, 56, 56), dtype=np.float32)
    marked = read_for_bf16(openvino_core(), path, import_openvino().serialize)
    exact = outputs(path, "f32", pixels_B3HW)
    for ours, theirs in zip(outputs(marked, "f32", pixels_B3HW), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    if "bf16" in this_hardware().cpu_features:
        with_marks, with_the_hint_only = (
            sum(
                float(np.square(ours - theirs).mean())
                for ours, theirs in zip(outputs(model, "bf16", pixels_B3HW), exact, strict=True)
            )
            for model in (marked, path)
        )
        assert 0 < with_marks < 0.7 * with_the_hint_only


PROGRAM = """
import gc, os, signal, sys
from model.package import open_package
from model.runtime.load import load_runtime

package = open_package(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = (load_runtime(package, runtime="openvino") for _ in range(2))
for runtime in (first, second):
    runtime.close()
del first, second, runtime
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow
def test_a_signal_arrives_after_runtimes_were_closed(tiny_package: ModelPackage) -> None:
    # Where the CPU has AMX, a core for each runtime kills the process here (exit -11).
    command = [sys.executable, "-c", PROGRAM, str(tiny_package.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr
