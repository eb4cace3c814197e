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
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from PIL import Image

from service.grpc.generated import embed_pb2, encoder_service_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub

LIMIT_S: Final = 120.0
OK: Final = 200
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
        with subprocess.Popen(
            command, env={**os.environ, "TIPSERVE_LOG_LEVEL": "WARNING"}
        ) as server:
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
            if status_of(f"{url}/v2/health/ready") == 200:
                return url, f"127.0.0.1:{ports['grpc']}"
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def wrong_routes(url: str) -> Iterator[str]:
    """Each request whose status is not the expected one."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=LIMIT_S) as answer:
        paths = json.load(answer)["paths"]
    for page in PAGES:
        if (status := status_of(url + page)) != OK:
            yield f"GET {page}: {status}, expected {OK}"
    names = {"model": MODEL, "model_id": MODEL, "version": "1"}
    for path, methods in sorted(paths.items()):
        for method, operation in methods.items():
            for media, body in bodies(path, operation.get("requestBody", {}).get("content", {})):
                status = status_of(url + path.format(**names), body, media, method.upper())
                print(f"{status} {method.upper()} {path} {media}")
                if status != OK:
                    yield f"{method.upper()} {path} {media}: {status}, expected {OK}"


def bodies(path: str, media_types: dict[str, Any]) -> Iterator[tuple[str, bytes | None]]:
    """A body in each media type that a route accepts; None for a GET."""
    if not media_types:
        yield "", None
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(buffer, "PNG")
    image = buffer.getvalue()
    if path in BODIES:
        yield "application/json", json.dumps(BODIES[path]).encode()
    elif "multipart/form-data" in media_types:
        head = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n'
        form = head % (b"images", b'; filename="a.png"\r\nContent-Type: image/png') + image
        if path.endswith((":segment", ":classify")):
            form += b"\r\n" + head % (b"classes", b"") + b"a flower"
            form += b"\r\n" + head % (b"classes", b"") + b"a tree"
        yield "multipart/form-data; boundary=x", form + b"\r\n--x--\r\n"
        if not path.endswith((":segment", ":classify")):
            yield "image/png", image


def status_of(url: str, body: bytes | None = None, media: str = "", method: str = "GET") -> int:
    """Status of the answer; 0 without one."""
    headers = {"Content-Type": media} if media else {}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


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
