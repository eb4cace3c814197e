"""One log line for each answered request, made for high rates.

A request hands over a few values and goes on; the log's own thread makes the line of them, without
the machinery of `logging`, which alone costs a request several times as much
(`benchmarks/observability_cost.py`).
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from json.encoder import encode_basestring_ascii as quoted
from typing import Final

from service.call import Call
from service.monitoring.log import LogFormat
from service.monitoring.log_lines import LineWriter
from service.tracing import Ending

NAME: Final = "service.access"


class AccessLog:
    """Writes the lines of a share of all requests, evenly spread."""

    def __init__(
        self,
        lines: LineWriter,
        log_format: LogFormat,
        *,
        ratio: float = 1.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._lines = lines
        self._format = as_json if log_format == "json" else as_text
        self._ratio = ratio
        self._owed = 0.0
        self._wall_clock = wall_clock

    def answered(self, call: Call, ending: Ending) -> None:
        """Log one answer, if it is one of the share or the fault was ours."""
        # Two loops may add at once and lose a part of one; the share bears that.
        self._owed += self._ratio
        if self._owed < 1.0 and not ending.is_fault:
            return
        self._owed = max(0.0, self._owed - 1.0)
        self._lines.put(partial(self._format, self._wall_clock(), call, ending))


def as_json(when: float, call: Call, ending: Ending) -> str:
    """The line as JSON; `when` in seconds since 1970."""
    code = ending.code if isinstance(ending.code, int) else quoted(ending.code)
    trace = f',"trace_id":"{call.trace.trace_id}"' if call.trace.trace_id else ""
    error = f',"error":{quoted(ending.error)}' if ending.error else ""
    stages = "".join(f',"{name}_s":{stage_s:.6f}' for name, stage_s in call.stages.items())
    return (
        f'{{"time":"{_utc(when)}","level":"INFO","logger":"{NAME}","message":"answered"'
        f',"request_id":{quoted(call.request_id)}{trace},"method":{quoted(ending.method)}'
        f',"code":{code}{error},"seconds":{ending.seconds:.6f}{stages}}}\n'
    )


def as_text(when: float, call: Call, ending: Ending) -> str:
    """The line for people."""
    trace = f" trace_id={call.trace.trace_id}" if call.trace.trace_id else ""
    error = f" error={ending.error}" if ending.error else ""
    stages = "".join(f" {name}_s={stage_s:.6f}" for name, stage_s in call.stages.items())
    return (
        f"{_utc(when)} INFO    answered request_id={call.request_id}{trace} method={ending.method} "
        f"code={ending.code}{error} seconds={ending.seconds:.6f}{stages}\n"
    )


def _utc(when: float) -> str:
    return f"{_utc_second(int(when))}.{int(when % 1 * 1000):03d}+00:00"


@lru_cache(maxsize=2)
def _utc_second(when: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))
