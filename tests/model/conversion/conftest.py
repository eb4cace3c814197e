"""A hub on this machine, and a cache in a temporary folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.conversion.cache import PackageCache
from tests.model.conversion.hub_stand_in import Hub, serving


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "cache")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with two small repositories, which `huggingface_hub` uses."""
    from huggingface_hub import constants  # noqa: PLC0415 - slow to import

    files = {
        "config.json": b'{"model_type": "tipsv2"}',
        "model.safetensors": bytes(range(256)) * 400,
        "tokenizer.json": b"{}",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "pytorch_model.bin": b"a pickle",
        "modeling.py": b"code",
        "onnx/model.onnx": b"another graph",
    }
    with serving(Hub({"google/tipsv2-b14", "google/tipsv2-b14-dpt"}, files)) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
