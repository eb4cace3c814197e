"""The real program, started and called as Vertex AI does."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

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
    run_program: "Callable[..., Program]",
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
        ask: Any = {"url": f"{url}{HEALTH}:predict", "json": body, "timeout": LIMIT_S}
        assert httpx.post(**ask).status_code == 401
        answer = httpx.post(**ask, headers={"Authorization": f"Bearer {KEY}"}).json()
        assert answer.keys() == {"predictions"}
        assert [len(p["embedding"]) for p in answer["predictions"]] == [8, 8]
    finally:
        assert program.end() == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [
        ([], {**VERTEX, "AIP_HTTP_PORT": "80"}, "http_port = 80  (variable AIP_HTTP_PORT)"),
        ([], VERTEX, f"predict_route = {HEALTH}:predict  (variable AIP_PREDICT_ROUTE)"),
        ([], {**VERTEX, "TIPSERVE_HTTP_PORT": "81"}, "= 81  (variable TIPSERVE_HTTP_PORT)"),
        (["--http-port=82"], VERTEX, "http_port = 82  (flag --http-port)"),
    ],
)
def test_vertex_ai_names_the_port_and_our_own_settings_win(
    arguments: list[str], environment: dict[str, str], shown: str
) -> None:
    loaded = load_settings(arguments, environment)
    assert shown in describe_settings(loaded, arguments, environment)
