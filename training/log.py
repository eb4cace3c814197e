"""`log.jsonl`: a run's loss curve, one JSON object a line, with no step twice.

A process that was killed may have logged steps after its last checkpoint; a resumed run takes these
again, so their lines go first.
"""

import json
import time
from pathlib import Path

Row = dict[str, float]
LOG_FILE = "log.jsonl"


class Log:
    """The log of one run; only the first rank has one."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOG_FILE

    def drop_after(self, step: int) -> None:
        """Forget what was logged after a step, and a line that a kill cut short."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self._path)

    def append(self, row: Row) -> None:
        """Add a row, and when it was."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time_s": round(time.time(), 1)}) + "\n")


def read_log(run: Path) -> list[Row]:
    """All rows of a run's log, in order; none where it has not logged yet."""
    path = run / LOG_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
