"""Captions by Gemini's batches, through Google's client and a stand-in for the service."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.captioning.conftest import Batches
from training.__main__ import main
from training.captioning.gemini_config import read_api_key
from training.captioning.job import read_shard
from training.data.shards.sample import Sample
from training.data.shards.store import ShardStore


@pytest.fixture
def command(shards: Path, batches: Batches, tmp_path: Path) -> list[str]:
    places = ["--shards", str(shards), "--output", str(tmp_path / "out")]
    return ["caption", "gemini", *places, "--base-url", batches.url]


def captions(folder: Path) -> dict[str, str | None]:
    return {
        key: sample.captions.get("gemini")
        for path in sorted(folder.glob("*.tar"))
        for key, sample in read_shard(path)
        if isinstance(sample, Sample)
    }


def test_paligemma_then_gemini_give_a_sample_three_captions(
    checkpoint: Path,
    shards: Path,
    batches: Batches,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = tmp_path / "out", tmp_path / "second"
    model = ["--model", str(checkpoint), "--batch-size", "3", "--set", "max_tokens=8"]
    places = ["--shards", str(shards), "--output", str(first)]
    assert main(["caption", "paligemma", *places, *model]) == 0
    assert "8 captions, 0 failed; the shards" in capsys.readouterr().out
    places = ["--shards", str(first), "--output", str(second), "--base-url", batches.url]
    assert main(["caption", "gemini", *places]) == 0
    out = capsys.readouterr().out
    assert "8 of them with captions (alt 8, gemini 8, paligemma 8)" in out
    assert captions(second) == {f"k{i:03d}": f"a long caption of k{i:03d}" for i in range(8)}
    sample = ShardStore(second).read(1, 2)
    assert (sample.key, list(sample.captions)) == ("k007", ["alt", "gemini", "paligemma"])
    assert [len(sent) for sent in batches.sent] == [5, 3]
    request = batches.sent[0][0]["request"]
    image, text = request["contents"][0]["parts"]
    assert image["inlineData"]["mimeType"] == "image/png"
    assert "Alt text: alt of k000\nShort caption: " in text["text"]
    assert request["generationConfig"]["mediaResolution"] == "MEDIA_RESOLUTION_MEDIUM"


def test_answers_without_a_caption_are_recorded_with_the_reason(
    command: list[str], batches: Batches, tmp_path: Path
) -> None:
    unusual: dict[str, dict[str, Any]] = {
        "k000": {"response": {"promptFeedback": {"blockReason": "SAFETY"}}},
        "k001": {"response": {"candidates": [{"finishReason": "RECITATION"}]}},
        "k002": {"response": {"candidates": [{"finishReason": "STOP"}]}},
        "k003": {"error": {"code": 400, "message": "bad image"}},
    }
    good = batches.answer
    batches.answer = lambda key: unusual.get(key) or good(key)
    assert main(command) == 0
    lines = (tmp_path / "out/a.tar.captions.jsonl").read_text().splitlines()
    failures = {o["key"]: o["failure"] for o in map(json.loads, lines) if o["failure"]}
    assert list(failures) == ["k003", "k002", "k001", "k000"]  # in the order of the answers
    reasons = ("bad image", "no text", "RECITATION", "SAFETY")
    assert all(part in text for part, text in zip(reasons, failures.values(), strict=True))
    assert [key for key, text in captions(tmp_path / "out").items() if text is None] == [*unusual]


def test_temporary_errors_are_tried_again_and_others_end_the_job(
    command: list[str], batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    batches.statuses = [429, 503]
    assert main(command) == 0
    batches.statuses = [403]
    assert main([*command, "--output", f"{command[5]}2"]) == 2
    error = capsys.readouterr().err
    assert "403" in error
    assert "a-secret-key" not in error


def test_a_batch_that_is_sent_is_waited_for_and_one_that_failed_is_sent_again(
    command: list[str],
    batches: Batches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.captioning.gemini.time.sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert len(batches.sent) == 2
    batches.end = "BATCH_STATE_EXPIRED"
    assert main(command) == 2
    assert "run again to send it again" in capsys.readouterr().err
    batches.end = "BATCH_STATE_SUCCEEDED"
    assert main(command) == 0
    assert len(batches.sent) == 3  # the second shard's batch is waited for
    assert None not in captions(tmp_path / "out").values()
    assert not list((tmp_path / "out").glob("*.note"))


@pytest.mark.parametrize(
    ("captioner", "line", "message"),
    [
        ("gemini", "image_resolution=huge", "image_resolution=huge: Input should be"),
        ("gemini", "max_words=0", "max_words"),
        ("paligemma", "max_tokens=0", "max_tokens=0: Input should be greater than 0"),
        ("paligemma", "temperature=1", "unknown setting 'temperature'"),
    ],
)
def test_wrong_settings_are_refused(
    shards: Path, captioner: str, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--shards", str(shards), "--output", "out"]
    assert main(["caption", captioner, *places, "--set", line]) == 2
    assert message in capsys.readouterr().err


def test_the_key_comes_from_a_named_file_or_the_environment(tmp_path: Path) -> None:
    both = {"GOOGLE_API_KEY": "g", "GEMINI_API_KEY": " m "}
    (tmp_path / "key").write_text("f\n")
    (tmp_path / "empty").write_text("\n")
    assert read_api_key(tmp_path / "key", both) == "f"
    assert read_api_key(None, both) == "m"
    with pytest.raises(ValueError, match="GEMINI_API_KEY"):
        read_api_key(None, {"GEMINI_API_KEY": ""})
    with pytest.raises(ValueError, match="is empty"):
        read_api_key(tmp_path / "empty", {})
