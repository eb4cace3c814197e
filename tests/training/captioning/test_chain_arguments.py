"""The captioning step of `deploy/training/chain-gemini/` as it stands there, and a stand-in.

Google's service cannot be asked from here: the one argument that is added is another address.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.training_steps import Places, build, chain_steps, environment, make_step
from training.__main__ import main
from training.captioning.journal import read_shard
from training.data.shards.sample import Sample


def test_the_key_comes_from_the_secrets_file_and_nobody_is_asked(
    shards: Path, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
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
