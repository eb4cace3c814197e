"""The whole service around a model that sleeps: batches take exactly what their line of costs says.

Neighbours on the machine hardly disturb sleep, so what is left is the service's own queue.
Run by `validate.py` as a process: python -m benchmarks.autoscaling.sleeping_service PORTS_FILE
INTERCEPT_S SLOPE_S [NAME=VALUE ...]
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.noop_service import NoopRuntime, serve_noop
from model.package import ModelPackage
from model.runtime.base import LaneShare, VisionOutput
from model.runtime.choice import RuntimeChoice
from service.lanes.latency_model import CostCurve


class SleepingRuntime(NoopRuntime):
    """Answers after so long."""

    def __init__(
        self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare, curve: CostCurve
    ) -> None:
        super().__init__(package, choice, share)
        self._curve = curve

    def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
        """The same noise for every image."""
        time.sleep(self._curve.seconds(len(pixels_B3HW)))
        return super().encode_images(pixels_B3HW)


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    ports_file, intercept, slope, *pairs = arguments
    curve = CostCurve(float(intercept), float(slope))

    def make(package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> SleepingRuntime:
        return SleepingRuntime(package, choice, share, curve)

    values = dict(pair.split("=", 1) for pair in pairs)
    uvloop.run(serve_noop(Path(ports_file), values, make))


if __name__ == "__main__":
    main(sys.argv[1:])
