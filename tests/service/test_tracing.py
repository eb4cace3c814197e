"""Without a tracing library: nothing is kept but the caller's own trace id."""

import pytest

from service.tracing import NO_BATCH, NO_TRACE, NoTracer, begin_batch, parse_traceparent

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (f"00-{TRACE_ID}-b7ad6b7169203331-01", TRACE_ID),
        (f"00-{TRACE_ID}-b7ad6b7169203331-00", TRACE_ID),
        (f"cc-{TRACE_ID}-b7ad6b7169203331-01-later-versions-add", TRACE_ID),
        (f"00-{TRACE_ID}-b7ad6b7169203331-01-this-version-does-not", ""),
        (f"00-{TRACE_ID}-b7ad6b7169203331", ""),
        (f"ff-{TRACE_ID}-b7ad6b7169203331-01", ""),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", ""),
        (f"00-{TRACE_ID}-{'0' * 16}-01", ""),
        (f"00-{TRACE_ID.upper()}-b7ad6b7169203331-01", ""),
        ("an image's name", ""),
    ],
)
def test_the_callers_trace_id_is_known_for_the_log(parent: str, expected: str) -> None:
    trace = NoTracer().begin("http", "GET", {"traceparent": parent}, 0.0)
    assert trace.trace_id == expected
    assert not trace.is_recording


@pytest.mark.parametrize(("flags", "is_sampled"), [("00", False), ("01", True), ("03", True)])
def test_the_last_bit_of_the_flags_says_whether_it_is_sampled(flags: str, is_sampled: bool) -> None:
    parent = parse_traceparent(f"00-{TRACE_ID}-b7ad6b7169203331-{flags}")
    assert parent == (TRACE_ID, is_sampled)


def test_no_caller_no_trace() -> None:
    assert NoTracer().begin("grpc", "a.B/C", {}, 0.0) is NO_TRACE


def test_a_batch_that_nobody_traces_has_no_trace() -> None:
    assert begin_batch([NO_TRACE, NO_TRACE], {}, 0.0) is NO_BATCH
