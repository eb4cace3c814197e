"""Log lines are one line each and carry the request id."""

import io
import json
import logging
import struct
import threading
import warnings

import grpc
import grpc.aio
import pytest
from PIL import TiffImagePlugin

from model.image_codec import ImageError, ImageLimits, decode_image
from service.call import Call, current_call
from service.monitoring.log import (
    SEND_ERROR,
    LineHandler,
    LineWriter,
    RecordFormatter,
    forget_warnings_about_files,
    had_a_caller,
    log_thread_end,
)

LIMIT_S = 20.0


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.INFO, __file__, 1, "hello %s", ("you",), None)
    made.fields = fields
    return made


def test_json_has_message_fields_and_request_id() -> None:
    token = current_call.set(Call(request_id="r1", deadline=1.0))
    try:
        line = RecordFormatter("json").format(record(code=200))
    finally:
        current_call.reset(token)
    parsed = json.loads(line)
    assert (parsed["message"], parsed["code"], parsed["request_id"]) == ("hello you", 200, "r1")


def test_an_exception_stays_on_its_line() -> None:
    made = record()
    try:
        raise ValueError("broken")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    line = RecordFormatter("json").format(made)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["exception"]


@pytest.mark.parametrize("fields", [{}, {"code": 200}])
def test_text_is_for_people(fields: dict[str, object]) -> None:
    line = RecordFormatter("text").format(record(**fields))
    assert "INFO" in line
    assert line.endswith("code=200" if fields else "hello you")


def test_a_caller_who_left_before_the_answer_is_no_error() -> None:
    # By the name of a class that gRPC does not publish, and that must go on being an error of it.
    send_errors = [c for c in grpc.aio.InternalError.__subclasses__() if c.__name__ == SEND_ERROR]
    for kind, is_logged in ((send_errors[0], False), (ValueError, True)):
        made = record()
        assert had_a_caller(made)
        made.exc_info = (kind, kind("x"), None)
        assert had_a_caller(made) is is_logged


def test_warnings_about_callers_files_are_not_kept() -> None:
    kept = TiffImagePlugin.__dict__.setdefault("__warningregistry__", {})
    # Entries of a directory that are said to lie beyond the file, each with a tag of its own.
    tags = range(60_000, 60_100)
    entries = b"".join(struct.pack("<HHII", tag, 2, 9, 2**30) for tag in tags)
    broken = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        forget_warnings_about_files()
        with pytest.raises(ImageError):
            decode_image(broken, ImageLimits(max_bytes=10**6, max_pixels=10**6))
        assert not [key for key in kept if isinstance(key, tuple)], "one for each text"


def test_records_of_every_library_go_to_the_same_lines() -> None:
    stream = io.StringIO()
    lines = LineWriter(stream)
    handler = LineHandler(lines)
    handler.setFormatter(RecordFormatter("json"))
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        logger.warning("Invalid HTTP request received.")
    finally:
        logger.removeHandler(handler)
    assert lines.close(LIMIT_S)
    parsed = json.loads(stream.getvalue())
    assert (parsed["logger"], parsed["level"]) == ("uvicorn.error", "WARNING")


def test_what_ends_a_thread_is_a_record(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    monkeypatch.setattr(threading, "excepthook", log_thread_end)
    thread = threading.Thread(target=fail, name="lane-0")
    thread.start()
    thread.join()
    (record,) = caplog.records
    assert record.getMessage() == "the thread lane-0 ended"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
