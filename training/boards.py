"""Boards that show a run while it trains: TensorBoard, and series for Prometheus."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from torch.utils.tensorboard import SummaryWriter

BoardName = Literal["tensorboard", "prometheus"]
BOARD_FOLDER: Final = "tensorboard"
METRICS_PORT: Final = 8002
TRAINING_SERIES: Final = (
    "tipserve_training_step",
    "tipserve_training_row_timestamp_seconds",
    "tipserve_training_value",
)


class Boards:
    """The boards of a run that `log_to` names; close them at the end.

    Args:
        names: Of the boards.
        run: The run's folder.
        from_step: Completed steps; later entries of an earlier start are hidden in TensorBoard.

    Raises:
        ValueError: A board does not start.
    """

    def __init__(self, names: Sequence[BoardName], run: Path, *, from_step: int = 0) -> None:
        self._series = _RunSeries(run.name) if "prometheus" in names else None
        self._writer = (
            SummaryWriter(run / BOARD_FOLDER, purge_step=from_step + 1)
            if "tensorboard" in names
            else None
        )

    def add_row(self, row: Mapping[str, float]) -> None:
        """Add a log row: losses, norms and scores."""
        step = int(row["step"])
        values = {
            f"score/{name}" if "/" in name else f"train/{name}": value
            for name, value in row.items()
            if name not in ("step", "time_s")
        }
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._series is not None:
            self._series.set(step, values)

    def add_panel(self, step: int, panel_HW3: NDArray[np.uint8]) -> None:
        """Add the drawn scenes of a validation."""
        if self._writer is not None:
            self._writer.add_image("scenes", panel_HW3, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end."""
        if self._writer is not None:
            self._writer.close()
        if self._series is not None:
            self._series.remove()


class _RunSeries:
    """Series of this process on `METRICS_PORT`, for a scrape; all its runs share the port.

    The series of a run end with it. They begin with its start, so that a first step that hangs is
    seen, too.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._step, self._row_time, self._value = _gauges()
        self._names: set[str] = set()
        self._row_time.labels(run).set_to_current_time()

    def set(self, step: int, values: Mapping[str, float]) -> None:
        self._step.labels(self._run).set(step)
        self._row_time.labels(self._run).set_to_current_time()
        for name, value in values.items():
            self._names.add(name)
            self._value.labels(self._run, name).set(value)

    def remove(self) -> None:
        self._row_time.remove(self._run)
        with suppress(KeyError):  # no row
            self._step.remove(self._run)
        for name in self._names:
            self._value.remove(self._run, name)


@cache
def _gauges() -> tuple[Gauge, Gauge, Gauge]:
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
