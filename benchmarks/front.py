"""HAProxy as the sidecar of `deploy/kubernetes/components/front/`, in front of a server here.

`python -m benchmarks.front` prints the CPU time of a request with and without it, in turn.
"""

import argparse
import os
import socket
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import yaml

from benchmarks.rolling.proxy import CONFIGURATION, PROJECT_ROOT
from benchmarks.service_process import RunningService, end, process_cpu_s, running_service
from service.grpc.generated import embed_pb2, image_pb2, segment_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub

COMPONENT: Final = PROJECT_ROOT / "deploy" / "kubernetes" / "components" / "front"
# Of the server behind it.
SETTINGS: Final = ("--grpc-host=127.0.0.1", "--trusted-proxies=127.0.0.1")
MOUNTED: Final = "/etc/haproxy/haproxy.cfg"
PHOTO: Final = PROJECT_ROOT / "service" / "rest" / "web" / "fruits.jpg"
NUM_CALLERS: Final = 4
ROUNDS: Final = 5


def container() -> dict[str, Any]:
    """The sidecar in its manifest."""
    manifest = yaml.safe_load((COMPONENT / "sidecar.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["initContainers"][0]
    return found


class Front:
    """The sidecar on a free port of all addresses, as a context; command and variables are its own.

    Args:
        program: Path of `haproxy`.
        folder: Folder for its log.
        server_port: The server's gRPC port.
        variables: Override those of the manifest.
    """

    def __init__(self, program: str, folder: Path, server_port: int, **variables: str) -> None:
        sidecar = container()
        # Handed over: a port that is only chosen here may be another program's a moment later.
        self._listening = socket.create_server(("0.0.0.0", 0))
        self.port = self._listening.getsockname()[1]
        descriptor = self._listening.fileno()
        self.log = folder / "front.log"
        self._command = [program, *sidecar["command"][1:-1], str(CONFIGURATION)]
        assert sidecar["command"][-1] == MOUNTED
        own = {one["name"]: one["value"] for one in sidecar["env"] if "value" in one}
        places = {"PROXY_GRPC": f"fd@{descriptor}", "PROXY_SERVER": f"127.0.0.1:{server_port}"}
        self._environment = {**os.environ, **own, **places, **variables}

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self._listening.fileno()],
            )
        # Connections wait until it accepts them.
        self._listening.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end(self.process)

    def cpu_s(self) -> float:
        """CPU seconds used so far, on all threads."""
        return process_cpu_s(self.process.pid)


def send(port: int, ask: Callable[[EncoderServiceStub], Any], num_each: int) -> None:
    """Send requests from some callers at once, each on a connection of its own."""

    def call() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            stub = EncoderServiceStub(channel)
            for _ in range(num_each):
                ask(stub)

    threads = [threading.Thread(target=call) for _ in range(NUM_CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def compare(
    service: RunningService, front: Front, ask: Callable[[EncoderServiceStub], Any], num_each: int
) -> None:
    """Print the medians of the rounds: CPU ms of server and proxy a request, and their ranges."""
    found: dict[str, list[float]] = {"server alone": [], "server behind": [], "proxy": []}
    num = num_each * NUM_CALLERS
    for _ in range(ROUNDS):
        for port in (service.grpc_port, front.port):
            before = service.cpu_s(), front.cpu_s()
            send(port, ask, num_each)
            server_ms, proxy_ms = (
                1000 * (now - then) / num
                for now, then in zip((service.cpu_s(), front.cpu_s()), before, strict=True)
            )
            is_behind = port == front.port
            found["server behind" if is_behind else "server alone"].append(server_ms)
            if is_behind:
                found["proxy"].append(proxy_ms)
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"  {name}: {middle:.3f} ms ({min(values):.3f} to {max(values):.3f})")


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--haproxy", default=str(PROJECT_ROOT / ".tools" / "bin" / "haproxy"))
    program = parser.parse_args().haproxy
    texts = embed_pb2.EmbedTextsRequest(texts=["a dog"])
    mask = segment_pb2.SegmentImagesRequest(
        images=[image_pb2.Image(encoded=PHOTO.read_bytes())],
        classes=[segment_pb2.SegmentClass(name=name) for name in ("apple", "pear", "table")],
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(*SETTINGS) as service,
        Front(program, Path(folder), service.grpc_port) as front,
    ):
        send(front.port, lambda stub: stub.SegmentImages(mask), 2)
        print(f"the proxy holds {resident_mib(front.process.pid):.0f} MiB")
        print("EmbedTexts, one known text:")
        compare(service, front, lambda stub: stub.EmbedTexts(texts), 250)
        print("SegmentImages, a photograph and three classes:")
        compare(service, front, lambda stub: stub.SegmentImages(mask), 25)
        print(f"the proxy holds {resident_mib(front.process.pid):.0f} MiB")


if __name__ == "__main__":
    main()
