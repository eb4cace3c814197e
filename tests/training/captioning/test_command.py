"""`python -m training caption`: options, estimates, refusals, and both captioners in a row."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.training_steps import Places, build, chain_steps, environment, make_step
from tests.training.captioning.fakes import StandIn, refused
from training.__main__ import main
from training.captioning.journal import read_shard
from training.data.shards.manifest import ShardStore
from training.data.shards.sample import Sample


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "a-secret-key")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)


def gemini(shards: Path, output: Path, url: str, *more: str) -> list[str]:
    places = ["--shards", str(shards), "--output", str(output), "--base-url", url]
    return ["caption", "gemini", *places, *more]


def test_paligemma_then_gemini_give_a_sample_three_captions(
    checkpoint: Path,
    shards: Path,
    tmp_path: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    places = ["--shards", str(shards), "--output", str(first), "--model", str(checkpoint)]
    assert main(["caption", "paligemma", *places, "--batch-size", "3", "--max-tokens", "8"]) == 0
    assert "8 captions, 0 failed" in capsys.readouterr().out
    assert main(gemini(first, second, stand_in.url, "--max-cost", "1")) == 0
    out = capsys.readouterr().out
    assert "8 images to caption" in out
    assert "8 captions, 0 failed, $0.00" in out
    for key, sample in read_shard(second / "a.tar"):
        assert isinstance(sample, Sample)
        assert list(sample.captions) == ["alt", "gemini", "paligemma"]
        assert sample.captions["gemini"] == f"a long caption of {key}"
    assert "CLS2 with captions: 8 images, from paligemma 8, gemini 8" in out
    assert ShardStore(second).read(1, 2).captions["gemini"] == "a long caption of k007"
    drafts = [str(request["contents"]) for request in stand_in.requests]
    assert all("Short caption: " in draft for draft in drafts)


def test_an_estimate_needs_no_key_and_sends_nothing(
    shards: Path,
    tmp_path: Path,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    assert main(gemini(shards, tmp_path / "out", stand_in.url, "--estimate")) == 0
    out = capsys.readouterr().out
    assert "8 images to caption" in out
    assert "prices of 2026-10-07" in out
    assert stand_in.requests == []
    assert not (tmp_path / "out").exists()


def test_paligemmas_estimate_measures_and_writes_nothing(
    checkpoint: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--shards", str(shards), "--output", str(tmp_path / "out")]
    settings = ["--model", str(checkpoint), "--max-tokens", "4", "--batch-size", "2"]
    assert main(["caption", "paligemma", *places, *settings, "--estimate"]) == 0
    out = capsys.readouterr().out
    assert "8 images to caption" in out
    assert "s per image here" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ((), "--yes"),
        (("--max-cost", "0.0001"), "over --max-cost"),
        (("--model", "gemini-9"), "--input-price and --output-price"),
        (("--yes", "--input-price", "1"), "--input-price and --output-price"),
        (("--yes", "--max-words", "0"), "max_words"),
    ],
)
def test_it_refuses_before_anything_is_sent(
    shards: Path,
    tmp_path: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    advice: str,
) -> None:
    assert main(gemini(shards, tmp_path / "out", stand_in.url, *more)) == 2
    assert advice in capsys.readouterr().err
    assert stand_in.requests == []


def test_other_prices_are_used(
    shards: Path, tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = ["--input-price", "1000", "--output-price", "0", "--price-date", "2027-01-01"]
    more = [*prices, "--model", "gemini-9", "--yes"]
    assert main(gemini(shards, tmp_path / "out", stand_in.url, *more)) == 0
    out = capsys.readouterr().out
    assert "prices of 2027-01-01" in out
    assert "$4.80" in out  # 8 answers of 600 tokens


def test_a_refused_key_ends_with_a_message(
    shards: Path, tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.default = lambda key: refused(403, "PERMISSION_DENIED")
    assert main(gemini(shards, tmp_path / "out", stand_in.url, "--yes")) == 2
    assert "the service refuses every request" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_result(
    shards: Path, tmp_path: Path, stand_in: StandIn, project_root: Path
) -> None:
    assert main(gemini(shards, tmp_path / "whole", stand_in.url, "--yes")) == 0
    asked = len(stand_in.requests)
    command = gemini(shards, tmp_path / "cut", stand_in.url, "--yes", "--max-in-flight", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *command],
        cwd=project_root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stand_in.on_request = lambda count: process.kill() if count == asked + 4 else None
    try:
        assert process.wait(timeout=240) == -9
    finally:
        process.kill()
        process.wait(timeout=30)
    stand_in.on_request = lambda count: None
    assert main(command) == 0
    # The one that was under way was sent again, and nothing else.
    assert len(stand_in.requests) == asked + 8 + 1
    for name in ("a.tar", "b.tar"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_key_comes_from_the_secrets_file_without_a_question(
    shards: Path, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "data").mkdir()
    shards.rename(tmp_path / "data/shards")
    secret = tmp_path / "secrets/gemini"
    secret.mkdir(parents=True)
    (secret / "api-key").write_text("a-secret-key\n", encoding="utf-8")
    documents = build("chain-gemini")
    (container,) = [step for step in chain_steps(documents) if step["name"] == "caption"]
    values = environment(container, documents, {"batch.kubernetes.io/job-name": "retrain-1"})
    step = make_step(container, values, Places(root=tmp_path))
    program, arguments = step.command[1:4], step.command[4:]
    assert program == ["-P", "-m", "training"]
    assert main([*arguments, "--base-url", stand_in.url]) == 0
    samples = [sample for _, sample in read_shard(tmp_path / "data/captioned/a.tar")]
    assert len(samples) == 5
    for sample in samples:
        assert isinstance(sample, Sample)
        assert sample.captions["gemini"].startswith("a long caption of ")
