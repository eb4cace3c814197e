"""Start the installed server; send a request to each REST route and to gRPC, also by our client.

Needs nothing but the dependencies of the server and of the extra `cli`, so that it runs where they
have their minimum versions, and on other Pythons; see `check_installations.sh`.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import httpx2
from PIL import Image

from service.grpc.generated import embed_pb2, encoder_service_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub

LIMIT_S: Final = 120.0
MODEL: Final = "tipserve-photographs"
# Pages and one file of each place that they come from: no document lists them.
PAGES: Final = ("/", "/docs", "/web/app.js", "/web/swagger-ui.css")
TEXT_TENSOR: Final = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a flower"]}
BODIES: Final[dict[str, Any]] = {
    "/v1/texts:embed": {"texts": ["a flower"]},
    "/v1/embeddings": {"input": "a flower", "model": MODEL},
    "/invocations": {"texts": ["a flower"]},
    "/v2/models/{model}/infer": {"inputs": [TEXT_TENSOR]},
    "/v2/models/{model}/versions/{version}/infer": {"inputs": [TEXT_TENSOR]},
}


def main() -> int:
    """Return the exit status: 1 if an answer has another status than expected."""
    with tempfile.TemporaryDirectory() as folder:
        ports_file = Path(folder) / "ports.json"
        flags = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        command = [sys.executable, "-m", "service", *flags, f"--ports-file={ports_file}"]
        quiet = {**os.environ, "TIPSERVE_LOG_LEVEL": "WARNING"}
        with subprocess.Popen(command, env=quiet) as server:
            try:
                url, target = wait_until_ready(server, ports_file)
                failed = [*wrong_routes(url), *wrong_rpcs(target), *wrong_commands(url, target)]
            finally:
                server.terminate()
        if server.returncode != 0:
            failed.append(f"the server ended with {server.returncode}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def wait_until_ready(server: "subprocess.Popen[bytes]", ports_file: Path) -> tuple[str, str]:
    """Base address of REST, and address of gRPC."""
    until = time.monotonic() + LIMIT_S
    while server.poll() is None and time.monotonic() < until:
        if ports_file.exists():
            ports = json.loads(ports_file.read_text(encoding="utf-8"))
            url = f"http://127.0.0.1:{ports['http']}"
            if httpx2.get(f"{url}/v2/health/ready", trust_env=False).is_success:
                return url, f"127.0.0.1:{ports['grpc']}"
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def wrong_routes(url: str) -> Iterator[str]:
    """Each request that fails."""
    names = {"model": MODEL, "model_id": MODEL, "version": "1"}
    with httpx2.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as client:
        requests: list[tuple[str, str, dict[str, Any]]] = [("GET", page, {}) for page in PAGES]
        for path, methods in sorted(client.get("/openapi.json").json()["paths"].items()):
            for method, operation in methods.items():
                media_types = operation.get("requestBody", {}).get("content", {})
                for body in bodies(path, media_types):
                    requests.append((method.upper(), path.format(**names), body))
        for method, path, body in requests:
            status = client.request(method, path, **body).status_code
            print(status, method, path, *body)
            if status != httpx2.codes.OK:
                yield f"{method} {path} {[*body]}: {status}"


def bodies(path: str, media_types: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A body in each media type that a route accepts, as httpx2 takes it; empty for a GET."""
    if not media_types:
        yield {}
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(buffer, "PNG")
    image = buffer.getvalue()
    if path in BODIES:
        yield {"json": BODIES[path]}
    elif "multipart/form-data" in media_types:
        needs_classes = path.endswith((":segment", ":classify"))
        classes = {"classes": ["a flower", "a tree"]} if needs_classes else {}
        yield {"files": {"images": ("a.png", image, "image/png")}, "data": classes}
        yield {"content": image, "headers": {"Content-Type": "image/png"}, "params": classes}


def wrong_rpcs(target: str) -> Iterator[str]:
    """Each failed RPC."""
    with grpc.insecure_channel(target) as channel:
        stub: Any = EncoderServiceStub(channel)
        try:
            stub.ListModels(encoder_service_pb2.ListModelsRequest(), timeout=LIMIT_S)
            stub.EmbedTexts(embed_pb2.EmbedTextsRequest(texts=["a flower"]), timeout=LIMIT_S)
        except grpc.RpcError as error:
            yield f"gRPC: {error}"


def wrong_commands(url: str, target: str) -> Iterator[str]:
    """Each command that fails, with a server over either protocol."""
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (56, 56), "red").save(Path(folder) / "a.png")
        for server in (url, f"grpc://{target}"):
            output = Path(folder) / f"{server.partition(':')[0]}.parquet"
            for command in (["embed", folder, "-o", str(output)], ["search", str(output), "red"]):
                done = subprocess.run(
                    [sys.executable, "-m", "tipserve_cli", *command, "--url", server],
                    check=False,
                    timeout=LIMIT_S,
                )
                if done.returncode != 0 or not output.exists():
                    yield f"tipserve {' '.join(command)} --url {server}: {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
