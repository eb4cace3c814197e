"""Boards of a run: TensorBoard and Prometheus."""

import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from training import boards as boards_module
from training.boards import BOARD_FOLDER, TRAINING_SERIES, Boards

LIMIT_S = 240
ROWS = [{"step": 1, "time_s": 5.0, "loss": 2.0}, {"step": 2, "loss": 1.0, "seen/patches": 30.0}]


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
