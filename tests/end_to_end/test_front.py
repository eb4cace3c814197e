"""Strangers do not reach gRPC's core: the sidecar ends their floods, and a stop fails no RPC."""

import dataclasses
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.http2_attacks import flood
from service.grpc.generated import embed_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from tests.processes.front import SETTINGS, Front, container
from tests.processes.service_process import peak_mib, running_service
from tests.tools import find_tool

LIMIT_S = 60.0
TEXTS = embed_pb2.EmbedTextsRequest(texts=["a dog"])
FLOOD_S = 8.0
# Without the front the same flood took 3 GiB.
MAX_RISE_MIB = 64.0
NUM_STOPS = 2


def test_continuation_frames_take_no_memory_and_keep_no_caller_out(tmp_path: Path) -> None:
    with (
        running_service(*SETTINGS) as service,
        Front(find_tool("haproxy"), tmp_path, service.grpc_port) as front,
        grpc.insecure_channel(f"127.0.0.1:{front.port}") as channel,
    ):
        ask = EncoderServiceStub(channel).EmbedTexts
        ask(TEXTS, timeout=LIMIT_S)
        pids = (service.pid, front.process.pid)
        before_mib, front_mib = (peak_mib(pid, reset=True) for pid in pids)
        through = dataclasses.replace(service, grpc_port=front.port)
        told: list[str] = []
        attack = flood("CONTINUATION", num_connections=32, seconds=FLOOD_S)
        attacker = threading.Thread(target=lambda: told.append(attack(through)))
        attacker.start()
        num_answered = 0
        while attacker.is_alive():
            ask(TEXTS, timeout=LIMIT_S)
            num_answered += 1
        attacker.join()
        assert told
        assert num_answered > 1
        rises_mib = (peak_mib(service.pid) - before_mib, peak_mib(front.process.pid) - front_mib)
        print(told, num_answered, before_mib, front_mib, rises_mib)
        assert max(rises_mib) < MAX_RISE_MIB


class Callers:
    """Callers of several servers, who balance themselves; they count how their RPCs end."""

    def __init__(self, ports: list[int]) -> None:
        self.ended: Counter[str] = Counter()
        self._is_over = threading.Event()
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self._threads = [threading.Thread(target=self._call, args=(target,)) for _ in range(4)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, num_more: int) -> None:
        """Return when so many more RPCs have ended."""
        wanted, until = self.ended.total() + num_more, time.monotonic() + LIMIT_S
        while self.ended.total() < wanted and time.monotonic() < until:
            time.sleep(0.01)

    def _call(self, target: str) -> None:
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]
        # Of several addresses gRPC makes an authority that HAProxy refuses.
        options += [("grpc.default_authority", "tipserve")]
        with grpc.insecure_channel(target, options) as channel:
            stub: Any = EncoderServiceStub(channel)
            while not self._is_over.is_set():
                try:
                    stub.EmbedTexts(TEXTS, timeout=LIMIT_S)
                    self.ended["OK"] += 1
                except grpc.RpcError as error:
                    self.ended[f"{error.code()} {error.details()}"] += 1


@pytest.mark.timeout(300)
def test_a_pod_that_stops_as_its_hooks_say_fails_no_rpc(tmp_path: Path) -> None:
    haproxy = find_tool("haproxy")
    hook = container()["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert hook.endswith("kill -USR1 1")
    for number in range(NUM_STOPS):
        with ExitStack() as stack:
            pods = []
            for name in ("stops", "stays"):
                folder = tmp_path / f"{name}{number}"
                folder.mkdir()
                service = stack.enter_context(running_service(*SETTINGS))
                front = stack.enter_context(Front(haproxy, folder, service.grpc_port))
                pods.append((service, front))
            (service, front), (_, other) = pods
            callers = stack.enter_context(Callers([front.port, other.port]))
            callers.wait_for(200)
            front.process.send_signal(signal.SIGUSR1)
            callers.wait_for(50)
            service.process.terminate()
            assert service.process.wait(LIMIT_S) == 0
            callers.wait_for(50)
            ended = callers.ended
        assert set(ended) == {"OK"}
        assert ended.total() > 150
