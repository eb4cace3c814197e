"""`--model CHECKPOINT` converts once, while health checks are answered."""

from pathlib import Path
from typing import Any

import httpx

from model.package import open_package
from tests.processes.server import LIMIT_S, Place, start_server


def embed(place: Place) -> Any:
    body = {"texts": ["a dog"], "encoding": "base64"}
    answer = httpx.post(f"{place.rest}/v1/texts:embed", json=body, timeout=LIMIT_S)
    return answer.status_code, answer.json()


def status(place: Place, probe: str) -> int:
    return httpx.get(f"{place.rest}/v2/health/{probe}", timeout=LIMIT_S).status_code


def test_a_checkpoint_is_converted_once_and_served(tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = (f"--model=student={tiny_checkpoint}", f"--cache={tmp_path}", "--runtime=onnx")
    answers: list[Any] = []
    steps: list[int] = []
    for _ in range(2):
        with start_server(*flags, waits=False) as server:
            place = Place(server.wait_for("listening"))
            server.wait_for("preparing")
            if not answers:
                # The conversion takes seconds and is still running here.
                assert (status(place, "live"), status(place, "ready")) == (200, 503)
                assert embed(place)[0] == 503
            assert server.wait_for("ready")["models"] == ["student"]
            answers.append(embed(place))
            # The converter runs in another process.
            maps = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
            assert "onnxruntime" in maps
            assert "torch" not in maps
            steps.append(server.log.read_text().count("exporting the vision graph"))
    assert steps == [1, 0]
    assert answers[0][0] == 200
    assert answers[0] == answers[1]
    (package,) = (tmp_path / "packages").iterdir()
    assert open_package(package).manifest.provenance["source"] == {"folder": tiny_checkpoint.name}
