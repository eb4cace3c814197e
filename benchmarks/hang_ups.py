"""Latency of one request right after 128 clients have disconnected, against its latency alone.

Claim: at most 3.5 times, over REST and over gRPC, three times in a row. The clients are a process
of their own, so that their work delays the measured request only by the cores that it takes.
Run: python -m benchmarks.hang_ups [--model bundled-student] [--resolution 224]
"""

import argparse
import http.client
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import grpc

from benchmarks.load import photo_like_jpeg, rest_request
from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2
from tests.processes.server import Server, start_server

NUM_CLIENTS = 128
NUM_SERIES = 3
LIMIT_S = 120.0
# Long enough for everything that a crowd has left behind, so that the next round starts from rest.
REST_S = 0.5


def rest_crowd(port: int, request: bytes) -> tuple[Callable[[], None], Callable[[], None]]:
    """Open the connections; functions that send one request on each, and that close them."""
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(NUM_CLIENTS)]

    def send() -> None:
        for connection in connections:
            connection.setblocking(False)
            connection.send(request)

    def hang_up() -> None:
        for connection in connections:
            connection.close()

    return send, hang_up


def grpc_crowd(port: int, request: bytes) -> tuple[Callable[[], None], Callable[[], None]]:
    """Open a channel; functions that begin the RPCs, and that cancel them."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    grpc.channel_ready_future(channel).result(LIMIT_S)
    stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
    message = embed_pb2.EmbedImagesRequest.FromString(request)
    calls: list[grpc.Future[Any]] = []

    def send() -> None:
        calls.extend(stub.EmbedImages.future(message, timeout=LIMIT_S) for _ in range(NUM_CLIENTS))

    def hang_up() -> None:
        for call in calls:
            call.cancel()

    return send, hang_up


def run_crowds(pipe: Connection, is_rest: bool, port: int, request: bytes) -> None:
    """In the process of the clients: one crowd per round, a step of it for each message."""
    make = rest_crowd if is_rest else grpc_crowd
    while pipe.recv():
        send, hang_up = make(port, request)
        pipe.send(None)
        seconds = pipe.recv()
        send()
        time.sleep(seconds)
        hang_up()
        pipe.send(None)


def ask_rest(service: Server, target: str, image: bytes) -> Callable[[], object]:
    """Send one request on a new connection."""

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.ports["http"], timeout=LIMIT_S)
        connection.request("POST", target, image, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}")

    return ask


def ask_grpc(service: Server, message: embed_pb2.EmbedImagesRequest) -> Callable[[], object]:
    """Send one RPC on a channel that stays open."""
    stub = encoder_service_pb2_grpc.EncoderServiceStub(grpc.insecure_channel(service.grpc))
    return lambda: stub.EmbedImages(message, timeout=LIMIT_S)


def seconds_of(ask: Callable[[], object]) -> float:
    """Time one request."""
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


def measure(service: Server, ask: Callable[[], object], crowd: Connection, num_rounds: int) -> str:
    """Medians of some rounds, each with one request alone and one after a crowd."""
    alone, after, computed = [seconds_of(ask)], [], []
    for _ in range(num_rounds):
        alone.append(seconds_of(ask))
        crowd.send(True)
        crowd.recv()
        time.sleep(REST_S)
        before = service.metric("tipserve_batch_images_sum")
        crowd.send(statistics.median(alone) / 2)
        crowd.recv()
        after.append(seconds_of(ask))
        time.sleep(REST_S)
        computed.append(service.metric("tipserve_batch_images_sum") - before - 1)
    alone_s, after_s = statistics.median(alone[1:]), statistics.median(after)
    return (
        f"{1000 * after_s:.0f} ms after {NUM_CLIENTS} hang-ups, {1000 * alone_s:.0f} ms alone: "
        f"{after_s / alone_s:.2f} times; {statistics.mean(computed):.1f} images had been begun"
    )


def main() -> None:
    """Measure one package at one resolution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-student", help="bundled, or a folder")
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=9, help="in each of three series")
    options = parser.parse_args()
    image = photo_like_jpeg(0)
    target = f"/v1/images:embed?resolution={options.resolution}"
    message = embed_pb2.EmbedImagesRequest(
        images=[image_pb2.Image(encoded=image)], resolution=options.resolution
    )
    with start_server(f"--model={options.model}", "--image-cache-bytes=0") as service:
        print(f"{options.model} at {options.resolution} px, 640x480 JPEG, {options.rounds} rounds")
        ways = {
            "REST": (ask_rest(service, target, image), rest_request(target, image)),
            "gRPC": (ask_grpc(service, message), message.SerializeToString()),
        }
        for name, (ask, request) in ways.items():
            is_rest = name == "REST"
            port = service.ports["http"] if is_rest else service.ports["grpc"]
            ours, theirs = multiprocessing.Pipe()
            clients = multiprocessing.get_context("spawn").Process(
                target=run_crowds, args=(theirs, is_rest, port, request)
            )
            clients.start()
            for _ in range(NUM_SERIES):
                print(f"{name}: {measure(service, ask, ours, options.rounds)}", flush=True)
            ours.send(False)
            clients.join()


if __name__ == "__main__":
    main()
