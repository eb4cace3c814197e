"""A download speaks now and then, and draws nothing."""

import pytest

from model.conversion.download_progress import EVERY_S, progress_bar


def test_bytes_are_told_at_times_and_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    now = [0.0]
    kind = progress_bar(said.append, of="google/tipsv2-b14", clock=lambda: now[0])
    with kind(total=4_000_000, unit="B", mininterval=0) as bar:
        bar.update(1_000_000)
        now[0] += EVERY_S
        bar.update(1_000_000)
        bar.update(1_000_000)
    with kind(total=3, desc="Fetching 3 files", mininterval=0) as bar:
        now[0] += EVERY_S
        bar.update(3)
    assert said == ["downloaded 2 of 4 MB of google/tipsv2-b14"]
    assert capfd.readouterr() == ("", "")
