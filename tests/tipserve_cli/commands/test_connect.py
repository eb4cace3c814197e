"""`tipserve connect`: the list, a connector that listens, and wrong usage."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from connectors import CONNECTORS, cvat
from tests.tipserve_cli.conftest import Fake
from tipserve_cli.commands.connect import ConnectOptions
from tipserve_cli.engine import UserError
from tipserve_cli.program import DONE, FAILED, WRONG_USAGE, Interrupted, main


def test_without_a_name_it_lists_the_connectors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CONNECTORS)


def test_cvat_has_a_file_and_no_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "cvat"]) == DONE
    assert cvat.__file__ in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, one in CONNECTORS.items() if one.module])
def test_a_connector_listens_until_it_is_stopped(
    name: str, fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: dict[str, Any] = {}

    def run(self: uvicorn.Server, sockets: Any) -> None:
        served.update(app=self.config.app, address=sockets[0].getsockname())
        raise Interrupted(0)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["connect", name, "--port=0"]) == DONE
    host, port = served["address"]
    assert f"http://{host}:{port}" in capsys.readouterr().out
    assert not fake.requests


def test_wrong_usage(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "paint"]) == WRONG_USAGE
    assert "label-studio" in capsys.readouterr().err
    (empty := tmp_path / "key").write_text("\n")
    assert main(["connect", "roboflow", f"--connector-key-file={empty}"]) == FAILED
    assert "is empty" in capsys.readouterr().err
    assert not fake.requests


def test_the_token_is_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "token").write_text("")
    options = ConnectOptions(label_studio_url="http://tool", label_studio_token_file=file)
    with pytest.raises(UserError, match="empty"):
        options.images()
    file.write_text("abc\n")
    options.images()
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "abc")
    ConnectOptions(label_studio_url="http://tool").images()


@pytest.mark.slow
def test_a_model_in_the_process_answers_until_sigterm(project_root: Path) -> None:
    command = [sys.executable, "-m", "tipserve_cli", "connect", "roboflow", "--port=0"]
    with subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split('"')[1]
            asked = {"text": ["a dog", "a cat"]}
            answer = httpx2.post(f"{url}/clip/embed_text", json=asked, timeout=60).json()
            assert len(answer["embeddings"]) == 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == DONE
        finally:
            process.kill()
