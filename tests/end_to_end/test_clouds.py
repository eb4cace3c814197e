"""The real program, started and called as SageMaker and Vertex AI do."""

import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from model.package import ModelPackage
from service.settings import describe_settings, load_settings

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Program

LIMIT_S = 60.0
KEY = "the-key-of-this-test"
HEALTH = "/v1/endpoints/12/deployedModels/34"
VERTEX = {
    "AIP_MODE": "PREDICTION",
    "AIP_HTTP_PORT": "0",
    "AIP_HEALTH_ROUTE": HEALTH,
    "AIP_PREDICT_ROUTE": HEALTH + ":predict",
}


def test_vertex_ai(
    run_program: "type[Program]",
    tiny_package: ModelPackage,
    photo: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    (tmp_path / "keys").write_text(KEY)
    arguments = (f"--model={tiny_package.path}", f"--api-keys-file={tmp_path / 'keys'}")
    program = run_program(*arguments, environment=VERTEX)
    try:
        url = f"http://127.0.0.1:{program.wait_for('ready')['http']}"
        assert httpx.get(url + HEALTH, timeout=LIMIT_S).json() == {"ready": True}
        body = {
            "instances": ["a dog", {"b64": base64.b64encode(photo(1)).decode()}],
            "parameters": {"dimensions": 8},
        }
        refused = httpx.post(f"{url}{HEALTH}:predict", json=body, timeout=LIMIT_S)
        assert refused.status_code == 401
        bearer = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{url}{HEALTH}:predict", json=body, headers=bearer, timeout=LIMIT_S)
        assert answer.json().keys() == {"predictions"}
        assert [len(p["embedding"]) for p in answer.json()["predictions"]] == [8, 8]
    finally:
        assert program.end() == 0


def test_vertex_ai_names_the_port_and_our_own_settings_win() -> None:
    def shown(*arguments: str, **environment: str) -> list[str]:
        loaded = load_settings(arguments, environment)
        return describe_settings(loaded, arguments, environment).splitlines()

    http = shown(**{**VERTEX, "AIP_HTTP_PORT": "8080"})
    assert "http_port = 8080  (variable AIP_HTTP_PORT)" in http
    assert f"predict_route = {HEALTH}:predict  (variable AIP_PREDICT_ROUTE)" in http
    ours = shown(**VERTEX, TIPSERVE_HTTP_PORT="81")
    assert "http_port = 81  (variable TIPSERVE_HTTP_PORT)" in ours
    assert "http_port = 82  (flag --http-port)" in shown("--http-port=82", **VERTEX)


def test_sagemaker(
    run_program: "type[Program]", tiny_package: ModelPackage, photo: Callable[..., bytes]
) -> None:
    command = [sys.executable, "-m", "service", "serve", "--show-config"]
    environment = {"TIPSERVE_HTTP_PORT": "8080", "TIPSERVE_MODEL": "/opt/ml/model"}
    shown = subprocess.run(
        command, capture_output=True, env=environment, timeout=LIMIT_S, check=True, text=True
    )
    assert "http_port = 8080  (variable TIPSERVE_HTTP_PORT)" in shown.stdout
    program = run_program(f"--model={tiny_package.path}")
    try:
        url = f"http://127.0.0.1:{program.wait_for('ready')['http']}"
        assert httpx.get(f"{url}/ping", timeout=LIMIT_S).status_code == 200
        jpeg = {"Content-Type": "image/jpeg"}
        raw = httpx.post(f"{url}/invocations", content=photo(1), headers=jpeg, timeout=LIMIT_S)
        assert len(raw.json()["data"][0]["cls1"]) == 32
        named = {"X-Amzn-SageMaker-Custom-Attributes": "/v1/images:segment?classes=dog,grass"}
        headers = {**jpeg, **named, "Accept": "image/png"}
        mask = httpx.post(f"{url}/invocations", content=photo(1), headers=headers, timeout=LIMIT_S)
        assert mask.content.startswith(b"\x89PNG")
    finally:
        assert program.end() == 0
