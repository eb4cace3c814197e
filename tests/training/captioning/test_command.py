"""`python -m training caption`: options, estimates, refusals, and both captioners in a row."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.deploy.training_steps import Places, build, chain_steps, environment, make_step
from tests.training.captioning.fakes import StandIn
from training.__main__ import main
from training.captioning.job import JobConfig
from training.captioning.journal import read_shard
from training.data.shards.manifest import ShardStore
from training.data.shards.sample import Sample


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "a-secret-key")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)


def command(captioner: str, job: JobConfig, *more: str) -> list[str]:
    places = ["--shards", str(job.shards), "--output", str(job.output)]
    return ["caption", captioner, *places, *more]


@pytest.fixture
def gemini(config: JobConfig, stand_in: StandIn) -> list[str]:
    return command("gemini", config, "--base-url", stand_in.url)


def test_paligemma_then_gemini_give_a_sample_three_captions(
    checkpoint: Path, config: JobConfig, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(checkpoint), "--batch-size", "3", "--max-tokens", "8"]
    assert main([*command("paligemma", config, *model), "--estimate"]) == 0
    out = capsys.readouterr().out
    assert "8 images to caption" in out
    assert "s per image here" in out
    assert not config.output.exists()
    assert main(command("paligemma", config, *model)) == 0
    assert "8 captions, 0 failed" in capsys.readouterr().out
    second = JobConfig(shards=config.output, output=config.output / "second")
    more = ["--base-url", stand_in.url, "--max-cost", "1"]
    assert main(command("gemini", second, *more)) == 0
    out = capsys.readouterr().out
    assert "8 images to caption" in out
    assert "8 captions, 0 failed, $0.00" in out
    for key, sample in read_shard(second.output / "a.tar"):
        assert isinstance(sample, Sample)
        assert list(sample.captions) == ["alt", "gemini", "paligemma"]
        assert sample.captions["gemini"] == f"a long caption of {key}"
    assert "gemini 8, paligemma 8)" in out
    assert ShardStore(second.output).read(1, 2).captions["gemini"] == "a long caption of k007"
    drafts = [str(request["contents"]) for request in stand_in.requests]
    assert all("Short caption: " in draft for draft in drafts)


def test_an_estimate_needs_no_key_and_sends_nothing(
    gemini: list[str],
    config: JobConfig,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    assert main([*gemini, "--estimate"]) == 0
    assert "8 images to caption" in capsys.readouterr().out
    assert stand_in.requests == []
    assert not config.output.exists()


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
    gemini: list[str],
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    advice: str,
) -> None:
    assert main([*gemini, *more]) == 2
    assert advice in capsys.readouterr().err
    assert stand_in.requests == []


def test_other_prices_are_used(gemini: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    prices = ["--input-price", "1000", "--output-price", "0", "--price-date", "2027-01-01"]
    assert main([*gemini, *prices, "--model", "gemini-9", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "prices of 2027-01-01" in out
    assert "$4.80" in out  # 8 answers of 600 tokens


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_result(
    gemini: list[str], config: JobConfig, tmp_path: Path, stand_in: StandIn, project_root: Path
) -> None:
    whole = replace(config, output=tmp_path / "whole")
    assert main(command("gemini", whole, "--base-url", stand_in.url, "--yes")) == 0
    asked = len(stand_in.requests)
    cut = [*gemini, "--yes", "--max-in-flight", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *cut],
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
    assert main(cut) == 0
    # The request that was under way was sent again, and nothing else.
    assert len(stand_in.requests) == asked + 8 + 1
    for name in ("a.tar", "b.tar"):
        assert (config.output / name).read_bytes() == (whole.output / name).read_bytes()


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
    assert all(isinstance(sample, Sample) and "gemini" in sample.captions for sample in samples)
