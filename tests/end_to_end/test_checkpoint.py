"""`python -m service --model CHECKPOINT`: converts once, while health checks are answered."""

from pathlib import Path
from typing import Any

import httpx

from model.package import open_package

LIMIT_S = 60.0


def embed(port: int) -> Any:
    url = f"http://127.0.0.1:{port}/v1/texts:embed"
    answer = httpx.post(url, json={"texts": ["a dog"], "encoding": "base64"}, timeout=LIMIT_S)
    return answer.status_code, answer.json()


def health(port: int) -> dict[str, int]:
    url = f"http://127.0.0.1:{port}/v2/health"
    return {
        name: httpx.get(f"{url}/{name}", timeout=LIMIT_S).status_code for name in ("live", "ready")
    }


def test_a_checkpoint_is_converted_once_and_served(
    run_program: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = [f"--model=student={tiny_checkpoint}", f"--cache={tmp_path}", "--runtime=onnx"]
    answers: list[Any] = []
    steps: list[int] = []
    for _ in range(2):
        program = run_program(*arguments)
        try:
            port = program.wait_for("listening")["http"]
            program.wait_for("preparing")
            if not answers:
                # The conversion takes seconds and is still running here.
                assert health(port) == {"live": 200, "ready": 503}
                assert embed(port)[0] == 503
            assert program.wait_for("ready")["models"] == ["student"]
            answers.append(embed(port))
            # The converter runs in another process.
            maps = Path(f"/proc/{program.process.pid}/maps").read_text(encoding="utf-8")
            assert "onnxruntime" in maps
            assert "torch" not in maps
        finally:
            assert program.end() == 0, "".join(program.log)
        steps.append("".join(program.log).count("exporting the vision graph"))
    assert steps == [1, 0]
    assert answers[0][0] == 200
    assert answers[0] == answers[1]
    (package,) = (tmp_path / "packages").iterdir()
    assert open_package(package).manifest.provenance["source"] == {"folder": tiny_checkpoint.name}
