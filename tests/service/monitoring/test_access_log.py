"""One line for each answer of the share that is logged; JSON that any reader takes."""

import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.call import Call
from service.monitoring.log import AccessLog, LineWriter, LogFormat
from service.tracing import Ending, NoTrace

LIMIT_S = 20.0
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
Write = Callable[..., list[str]]


@pytest.fixture
def write() -> Write:
    """The lines that so many answers leave."""

    def write_lines(
        call: Call, *endings: Ending, log_format: LogFormat = "json", ratio: float = 1.0
    ) -> list[str]:
        stream = io.StringIO()
        lines = LineWriter(stream)
        log = AccessLog(lines, log_format, ratio=ratio, wall_clock=lambda: 1_700_000_000.25)
        for ending in endings:
            log.answered(call, ending)
        assert lines.close(LIMIT_S)
        return stream.getvalue().splitlines()

    return write_lines


def ending(**values: Any) -> Ending:
    return Ending("GET /x", 200, None, is_fault=False, seconds=0.25)._replace(**values)


def test_json_has_ids_method_code_and_stages(write: Write) -> None:
    call = Call(request_id="r1", deadline=1.0, trace=NoTrace(TRACE_ID))
    call.stages = {"admit": 0.001, "run": 0.125}
    (line,) = write(call, ending())
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "INFO",
        "logger": "service.access",
        "message": "answered",
        "request_id": "r1",
        "trace_id": TRACE_ID,
        "method": "GET /x",
        "code": 200,
        "seconds": 0.25,
        "admit_s": 0.001,
        "run_s": 0.125,
    }


def test_an_error_has_its_short_name_and_a_grpc_code_is_a_word(write: Write) -> None:
    call = Call(request_id="r1", deadline=1.0)
    (line,) = write(call, ending(code="RESOURCE_EXHAUSTED", error="queue_full"))
    parsed = json.loads(line)
    assert (parsed["code"], parsed["error"]) == ("RESOURCE_EXHAUSTED", "queue_full")
    assert "trace_id" not in parsed


def test_a_hostile_id_stays_inside_its_string(write: Write) -> None:
    hostile = 'a","level":"ERROR\\'
    (line,) = write(Call(request_id=hostile, deadline=1.0), ending())
    assert json.loads(line)["request_id"] == hostile


def test_text_is_for_people(write: Write) -> None:
    call = Call(request_id="r1", deadline=1.0, trace=NoTrace(TRACE_ID))
    call.stages = {"run": 0.125}
    (line,) = write(call, ending(code=429, error="queue_full"), log_format="text")
    assert line == (
        f"2023-11-14T22:13:20.250+00:00 INFO    answered request_id=r1 trace_id={TRACE_ID} "
        "method=GET /x code=429 error=queue_full seconds=0.250000 run_s=0.125000"
    )


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 100), (0.25, 25), (0.1, 10), (0.0, 0)])
def test_a_share_is_logged_evenly(write: Write, ratio: float, expected: int) -> None:
    call = Call(request_id="r1", deadline=1.0)
    endings = [ending(seconds=float(number)) for number in range(100)]
    seconds = [json.loads(line)["seconds"] for line in write(call, *endings, ratio=ratio)]
    assert len(seconds) == pytest.approx(expected, abs=1)
    gaps = {round(b - a) for a, b in itertools.pairwise(seconds)}
    assert len(gaps) <= 2


def test_our_own_faults_are_always_logged(write: Write) -> None:
    call = Call(request_id="r1", deadline=1.0)
    fault = ending(code=500, error="internal", is_fault=True)
    lines = write(call, ending(), fault, ending(), ratio=0.0)
    assert [json.loads(line)["code"] for line in lines] == [500]
