"""Boards of a run: TensorBoard, and W&B and MLflow as published, without a network.

W&B and MLflow are installed apart from this project: `scripts/tools/trackers.sh`.
"""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from tests.tools import TOOLS, miss
from training import boards as boards_module
from training.boards import BOARD_FOLDER, TRAINING_SERIES, Boards
from training.recipes.first_light import first_student
from training.run import run

LIMIT_S = 240
TRACKERS = TOOLS.parent / "trackers-venv" / "bin" / "python"
ROWS = [{"step": 1, "time_s": 5.0, "loss": 2.0}, {"step": 2, "loss": 1.0, "seen/patches": 30.0}]
# The second start repeats step 2, as a run does that was killed after its last checkpoint.
TWO_STARTS = """
    import json, sys
    from pathlib import Path
    import numpy as np
    from training.boards import Boards

    run, rows = Path(sys.argv[1]), json.loads(sys.argv[2])
    for start in (rows, rows[1:]):
        boards = Boards(("wandb", "mlflow"), run, config={"seed": 0})
        for row in start:
            boards.add_row(row)
        boards.add_panel(2, np.full((4, 8, 3), 128, np.uint8))
        boards.close()

    from mlflow import MlflowClient

    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'tipserve'")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    print(json.dumps({
        "name": found.info.run_name,
        "status": found.info.status,
        "metrics": found.data.metrics,
        "losses": [[metric.step, metric.value] for metric in history],
        "files": sorted(item.path for item in client.list_artifacts(found.info.run_id)),
    }))
"""


def test_tensorboard_shows_rows_and_scenes(tmp_path: Path) -> None:
    boards = Boards(("tensorboard",), tmp_path)
    for row in ROWS:
        boards.add_row(row)
    boards.add_panel(2, np.zeros((4, 8, 3), np.uint8))
    boards.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / BOARD_FOLDER)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 2.0), (2, 1.0)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "score/seen/patches"}
    assert [event.step for event in events.Images("scenes")] == [2]


def test_prometheus_scrapes_a_run_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr("training.boards.METRICS_PORT", taken.getsockname()[1])
        taken.listen()
        with pytest.raises(ValueError, match="log_to=prometheus: port"):
            Boards(("prometheus",), tmp_path / "a")

    def scrape() -> dict[str, float]:
        url = f"http://127.0.0.1:{boards_module.METRICS_PORT}/metrics"
        lines = httpx.get(url, timeout=LIMIT_S).text.splitlines()
        return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}

    began = time.time()
    first, second = (Boards(("prometheus",), tmp_path / name) for name in ("a", "b"))
    assert scrape()['tipserve_training_row_timestamp_seconds{run="b"}'] >= began
    for row in ROWS:
        first.add_row(row)
    found = scrape()
    assert found['tipserve_training_step{run="a"}'] == 2
    assert found['tipserve_training_value{name="train/loss",run="a"}'] == 1
    assert found['tipserve_training_value{name="score/seen/patches",run="a"}'] == 30
    assert {key.partition("{")[0] for key in found} == {*TRAINING_SERIES}
    first.close()
    assert list(scrape()) == ['tipserve_training_row_timestamp_seconds{run="b"}']
    second.close()
    assert scrape() == {}


@pytest.mark.slow
def test_wandb_and_mlflow_show_a_resumed_run_as_one(project_root: Path, tmp_path: Path) -> None:
    if not TRACKERS.exists():
        miss("W&B and MLflow are missing: run scripts/tools/trackers.sh")
    folder = tmp_path / "a-run"
    folder.mkdir()
    variables = {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlflow").as_uri(),
        "PYTHONPATH": str(project_root),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(
        [str(TRACKERS), "-c", textwrap.dedent(TWO_STARTS), str(folder), json.dumps(ROWS)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["name"], found["status"]) == ("a-run", "FINISHED")
    assert found["metrics"] == {"train/loss": 1.0, "score/seen/patches": 30.0}
    assert found["losses"] == [[1, 2.0], [2, 1.0], [2, 1.0]]
    assert found["files"] == ["config.json", "images"]

    kept = json.loads((folder / "boards.json").read_text(encoding="utf-8"))["wandb"]
    logs = sorted((folder / "wandb").glob(f"offline-run-*-{kept}*/run-{kept}.wandb"))
    assert logs
    assert all(name in logs[0].read_bytes() for name in (b"train/loss", b"score/seen/patches"))
    (panel, *_) = (folder / "wandb").glob("offline-run-*/files/media/images/scenes_2_*.png")
    assert np.array_equal(np.asarray(Image.open(panel)), np.full((4, 8, 3), 128))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_reported_before_anything_else(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = replace(first_student(), runs=tmp_path, log_to=("tensorboard", name))
    with pytest.raises(ValueError, match=rf"log_to={name}: .* pip install 'tipserve\[{name}\]'"):
        run(config)
    assert not list(tmp_path.iterdir())


def test_a_failing_tracking_server_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failure(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Failure("the server is away")

    created = SimpleNamespace(info=SimpleNamespace(run_id="7"))
    client = SimpleNamespace(
        create_run=lambda *_, **__: created,
        get_experiment_by_name=lambda _: SimpleNamespace(experiment_id="1"),
        update_run=lambda *_, **__: None,
        log_dict=lambda *_: None,
        log_batch=fail,
        set_terminated=fail,
    )
    library = SimpleNamespace(
        MlflowClient=lambda: client,
        MlflowException=Failure,
        entities=SimpleNamespace(Metric=lambda *values: values),
    )
    monkeypatch.setitem(sys.modules, "mlflow", library)
    boards = Boards(("mlflow",), tmp_path)
    boards.add_row(ROWS[0])
    boards.close()
    assert capsys.readouterr().out == 2 * "log_to=mlflow: the server is away\n"
