"""The start compares both ways to decode JPEG images, and says which it takes and why."""

import logging
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from model.jpeg_device import JpegDeviceError
from service import jpeg_choice
from service.engines.engine import EngineError
from service.engines.in_process import InProcessEngine
from service.images import JpegDecoding
from service.jpeg_choice import ROUNDS, choose_jpeg_decoding
from service.settings import Settings
from tests.model.stand_in_codec import StandInCodec

MakeSettings = Callable[..., Settings]
NUM_FILES = 3


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> StandInCodec:
    """A GPU that nvImageCodec can use."""
    found = StandInCodec()
    monkeypatch.setitem(sys.modules, "nvidia", SimpleNamespace(nvimgcodec=found))
    return found


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Let decoding on the CPU and on the GPU take so many milliseconds, in turn."""

    def set_times(cpu_then_gpu: Sequence[float]) -> None:
        times = list(cpu_then_gpu) * (ROUNDS * NUM_FILES)

        def milliseconds(work: Callable[[], object]) -> float:
            work()
            return times.pop(0)

        monkeypatch.setattr(jpeg_choice, "_milliseconds", milliseconds)

    return set_times


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == jpeg_choice.__name__]


def test_by_default_no_library_is_loaded(
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    caplog.set_level(logging.INFO)
    settings = make_settings(jpeg_decode="exact")
    assert choose_jpeg_decoding(settings) == JpegDecoding("exact")
    assert not lines(caplog)


def test_another_word_is_an_error(make_settings: MakeSettings) -> None:
    with pytest.raises(ValidationError, match="jpeg_device"):
        make_settings(jpeg_device="cuda")


@pytest.mark.parametrize(
    ("times", "is_gpu", "message"),
    [
        ((2.0, 0.5), True, "JPEG images are decoded on the GPU"),
        ((2.0, 2.0), False, "decoded on the CPU, which takes less CPU time than with the GPU"),
    ],
)
def test_auto_takes_what_costs_less_cpu_time(
    codec: StandInCodec,
    make_settings: MakeSettings,
    take: Callable[[Sequence[float]], None],
    caplog: pytest.LogCaptureFixture,
    times: tuple[float, float],
    is_gpu: bool,
    message: str,
) -> None:
    take(times)
    caplog.set_level(logging.INFO)
    chosen = choose_jpeg_decoding(make_settings(jpeg_device="auto"))
    assert (chosen.device is not None) is is_gpu
    assert chosen.size == "fast"
    (line,) = lines(caplog)
    assert message in line.getMessage()
    costs = {"cpu_ms": NUM_FILES * times[0], "gpu_ms": NUM_FILES * times[1]}
    differences = {"mean_levels": pytest.approx(0, abs=0.05), "max_levels": pytest.approx(0, abs=2)}
    assert line.__dict__["fields"] == {**costs, **differences}
    # Each photograph was compared once and measured on the device in every round.
    assert codec.num_decoded == NUM_FILES * (1 + ROUNDS)


def test_gpu_takes_the_gpu_at_any_cost(
    codec: StandInCodec, make_settings: MakeSettings, take: Callable[[Sequence[float]], None]
) -> None:
    take((1.0, 9.0))
    assert choose_jpeg_decoding(make_settings(jpeg_device="gpu")).device is not None


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda codec: delattr(sys.modules["nvidia"], "nvimgcodec"), "needs nvImageCodec"),
        (lambda codec: setattr(codec, "fault", "none"), "the GPU does not decode a photograph"),
        (lambda codec: setattr(codec, "fault", RuntimeError("full")), "does not decode a photo"),
        # Chroma repeated, as the library does without being asked otherwise.
        (
            lambda codec: setattr(codec, "options", ":fancy_upsampling=0"),
            "grey levels on average, at most",
        ),
    ],
    ids=["no library", "no decoder", "full memory", "other pixels"],
)
def test_a_gpu_that_does_not_decode_as_the_cpu_is_refused(
    codec: StandInCodec,
    make_settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[StandInCodec], None],
    reason: str,
) -> None:
    break_it(codec)
    caplog.set_level(logging.INFO)
    assert choose_jpeg_decoding(make_settings(jpeg_device="auto")).device is None
    (line,) = lines(caplog)
    assert line.getMessage().startswith("JPEG images are decoded on the CPU: ")
    with pytest.raises(JpegDeviceError, match=reason):
        choose_jpeg_decoding(make_settings(jpeg_device="gpu"))
    with pytest.raises(EngineError, match=reason):
        InProcessEngine(make_settings(jpeg_device="gpu"))
