"""Signals: a real process that trains is stopped, saves, and goes on to the same loss curve."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from training.checkpoint import checkpoint_step
from training.config import TrainingConfig
from training.data.folder import DataFolder
from training.log import Row, read_log
from training.preemption import STOP_SIGNALS, Stopped, StopRequest
from training.run import run

PROGRAM = Path(__file__).with_name("held_run.py")
TIMEOUT_S = 240
STOP_AT = 3  # the batch, from 0, with which the program waits


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program that trains, as a module."""
    spec = spec_from_file_location("held_run", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def curve(config: TrainingConfig) -> list[Row]:
    clocks = ("time_s", "step_s", "wait_s")
    rows = read_log(config.folder)
    return [{name: row[name] for name in row if name not in clocks} for row in rows]


def stop_a_run(arguments: Sequence[str], root: Path, *, to_group: bool) -> tuple[int, str, str]:
    """Start the program, signal it in the middle of a step, and wait for its end."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments, str(STOP_AT)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said: list[str] = []
        while not said or "waiting" not in said[-1]:
            ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_S)
            assert ready, "the program does not get as far as its batch"
            said.append(process.stdout.readline())
            assert said[-1], "the program ended by itself"
        if to_group:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C does
        else:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate("go on\n", timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait(timeout=TIMEOUT_S)
    return process.returncode, "".join(said) + out, err


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize(("num_workers", "to_group"), [(0, False), (1, True)])
def test_a_stopped_process_saves_and_goes_on_to_the_identical_loss_curve(
    num_workers: int,
    to_group: bool,
    program: ModuleType,
    data_folder: DataFolder,
    tmp_path: Path,
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(program.scene_inputs, "_TOKENIZER_SCENES", 10)
    arguments = [str(data_folder.path), str(tmp_path), str(num_workers)]
    config = program.config_of(*arguments)
    status, out, err = stop_a_run(arguments, project_root, to_group=to_group)
    assert status == 0, err
    name = "SIGINT" if to_group else "SIGTERM"
    assert err.count(f"{name}: finishing the step and saving; a second signal ends at once") == 1
    assert "Traceback" not in err
    assert f"saved at step {STOP_AT + 1}; run the same command to go on" in out
    assert checkpoint_step(config.folder) == STOP_AT + 1
    assert len(curve(config)) == STOP_AT + 1
    assert not (config.folder / "model").exists()
    whole = replace(config, name="whole")
    for each in (config, whole):
        run(each)
    assert curve(config) == curve(whole)
    assert len(curve(whole)) == config.num_steps
    found, expected = (load_file(c.folder / "model/model.safetensors") for c in (config, whole))
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_a_question(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        seen = [stop.is_requested]
        os.kill(os.getpid(), number)
        seen.append(stop.is_requested)
    assert seen == [False, True]
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing the step" in capfd.readouterr().err


def test_the_second_signal_ends_at_once(project_root: Path) -> None:
    text = (
        "import os, signal, time\n"
        "from training.preemption import StopRequest\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=project_root,
        env={**os.environ, "PYTHONPATH": str(project_root)},
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")


def test_a_forked_process_leaves_the_signal_to_its_parent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with StopRequest() as stop:
        stop._pid = os.getpid() + 1  # as it is seen from a fork
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_requested
    assert capfd.readouterr().err == ""


def test_other_threads_catch_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def enter() -> None:
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(timeout=TIMEOUT_S)
    assert seen == [before]


def test_a_stop_says_how_to_go_on() -> None:
    stopped = Stopped(7)
    assert stopped.step == 7
    assert str(stopped) == "saved at step 7; run the same command to go on"
