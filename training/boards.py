"""Boards that show a run while it trains: TensorBoard, Weights & Biases, MLflow, Prometheus.

Each takes log rows and drawn scenes. W&B and MLflow are installations of the user, and read server,
key, project and mode from their own variables and files. `boards.json` in the run's folder keeps
the identifiers of their runs, so that a resumed run continues them.
"""

import importlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from model.files import atomic_write

BoardName = Literal["tensorboard", "wandb", "mlflow", "prometheus"]
BOARD_FOLDER: Final = "tensorboard"
WANDB_FOLDER: Final = "wandb"
_IDS_FILE: Final = "boards.json"
_PROJECT: Final = "tipserve"
METRICS_PORT: Final = 8002
TRAINING_SERIES: Final = (
    "tipserve_training_step",
    "tipserve_training_row_timestamp_seconds",
    "tipserve_training_value",
)


class Board(Protocol):
    """Shows one run; close it at the end."""

    def add_row(self, step: int, values: Mapping[str, float]) -> None:
        """Add losses, norms and scores by name."""

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        """Add the drawn scenes of a validation."""

    def close(self) -> None:
        """Send what is left, and end."""


class Boards:
    """The boards of a run that `log_to` names; close them at the end.

    Args:
        names: Of the boards.
        run: The run's folder.
        config: Of the run, as nested JSON.
        from_step: Completed steps; later entries of an earlier start are hidden in TensorBoard, and
            repeated with the same values in the others.

    Raises:
        ValueError: A board is not installed, or does not start.
    """

    def __init__(
        self,
        names: Sequence[BoardName],
        run: Path,
        *,
        config: Mapping[str, Any] | None = None,
        from_step: int = 0,
    ) -> None:
        self._boards: list[Board] = []
        for name in names:
            if name == "tensorboard":
                self._boards.append(_TensorBoard(run, from_step=from_step))
            elif name == "wandb":
                self._boards.append(_WeightsAndBiases(run, config or {}))
            elif name == "prometheus":
                self._boards.append(_Prometheus(run))
            else:
                self._boards.append(_MLflow(run, config or {}))

    def add_row(self, row: Mapping[str, float]) -> None:
        """Add a log row: losses, norms and scores."""
        values = {
            f"score/{name}" if "/" in name else f"train/{name}": value
            for name, value in row.items()
            if name not in ("step", "time_s")
        }
        for board in self._boards:
            board.add_row(int(row["step"]), values)

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        """Add the drawn scenes of a validation."""
        for board in self._boards:
            board.add_panel(step, panel_HW3)

    def close(self) -> None:
        """Send what is left, and end."""
        for board in self._boards:
            board.close()


def check_installed(names: Sequence[BoardName]) -> None:
    """Import what the boards need.

    Raises:
        ValueError: A library is not installed; the message says how to install it.
    """
    for name in names:
        if name in ("wandb", "mlflow"):
            _library(name)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(
            f"log_to={name}: {name} is not installed; run: pip install 'tipserve[{name}]'"
        ) from error


def _read_ids(run: Path) -> dict[str, str]:
    path = run / _IDS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _keep_id(run: Path, name: str, identifier: str) -> None:
    ids = _read_ids(run) | {name: identifier}
    atomic_write(run / _IDS_FILE, (json.dumps(ids) + "\n").encode())


class _TensorBoard:
    def __init__(self, run: Path, *, from_step: int) -> None:
        # Imported here, because it imports torch, which the other boards do not need.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self._writer = SummaryWriter(run / BOARD_FOLDER, purge_step=from_step + 1)

    def add_row(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        self._writer.add_image("scenes", panel_HW3, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Prometheus:
    """Series of this process on `METRICS_PORT`, for a scrape; all its runs share the port.

    The series of a run end with it. They begin with its start, so that a first step that hangs is
    seen, too.
    """

    def __init__(self, run: Path) -> None:
        self._run = run.name
        self._step, self._row_time, self._value = _series()
        self._names: set[str] = set()
        self._row_time.labels(self._run).set_to_current_time()

    def add_row(self, step: int, values: Mapping[str, float]) -> None:
        self._step.labels(self._run).set(step)
        self._row_time.labels(self._run).set_to_current_time()
        for name, value in values.items():
            self._names.add(name)
            self._value.labels(self._run, name).set(value)

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        """Prometheus keeps no images."""

    def close(self) -> None:
        self._row_time.remove(self._run)
        with suppress(KeyError):  # no row
            self._step.remove(self._run)
        for name in self._names:
            self._value.remove(self._run, name)


@cache
def _series() -> tuple[Gauge, Gauge, Gauge]:
    """The series, served from the first call on.

    Raises:
        ValueError: The port is in use.
    """
    registry = CollectorRegistry()
    try:
        start_http_server(METRICS_PORT, registry=registry)
    except OSError as error:
        raise ValueError(
            f"log_to=prometheus: port {METRICS_PORT}: {error.strerror}; end the process that uses "
            "it, or leave prometheus out"
        ) from error
    step, row_time, value = TRAINING_SERIES
    return (
        Gauge(step, "Completed steps.", ["run"], registry=registry),
        Gauge(
            row_time,
            "Time of the newest log row, or of the start, in seconds since the epoch.",
            ["run"],
            registry=registry,
        ),
        Gauge(
            value, "Losses, norms and scores of the log row.", ["run", "name"], registry=registry
        ),
    )


class _WeightsAndBiases:
    """W&B refuses a step that it has already, so what a resumed run repeats is kept once."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._library = _library("wandb")
        try:
            self._run = self._library.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=run.name,
                id=_read_ids(run).get("wandb"),
                resume="allow",
                dir=run,
                config=dict(config),
                reinit="create_new",  # several students may train in one process
            )
        except self._library.Error as error:
            raise ValueError(f"log_to=wandb: {error}") from error
        _keep_id(run, "wandb", self._run.id)

    def add_row(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        self._run.log({"scenes": self._library.Image(panel_HW3)}, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A tracking server that fails while a run trains is reported and does not end the run."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._library = _library("mlflow")
        self._client = self._library.MlflowClient()
        try:
            self._id = _read_ids(run).get("mlflow") or self._create(run.name)
            self._client.update_run(self._id, status="RUNNING")
            self._client.log_dict(self._id, dict(config), "config.json")
        except self._library.MlflowException as error:
            raise ValueError(f"log_to=mlflow: {error}") from error
        _keep_id(run, "mlflow", self._id)

    def _create(self, name: str) -> str:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        return str(self._client.create_run(number, run_name=name).info.run_id)

    def add_row(self, step: int, values: Mapping[str, float]) -> None:
        now_ms, metric = int(time.time() * 1000), self._library.entities.Metric
        metrics = [metric(name, value, now_ms, step) for name, value in values.items()]
        self._report("log_batch", metrics=metrics)

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        self._report("log_image", image=panel_HW3, key="scenes", step=step)

    def close(self) -> None:
        self._report("set_terminated")

    def _report(self, method: str, **values: object) -> None:
        try:
            getattr(self._client, method)(self._id, **values)
        except self._library.MlflowException as error:
            print(f"log_to=mlflow: {error}", flush=True)
