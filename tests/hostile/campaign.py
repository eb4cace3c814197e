"""A campaign of broken requests among good ones, with the server's vital signs."""

import argparse
import json
import os
import random
import re
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.service_process import running_service
from service.grpc.generated import embed_pb2, image_pb2, segment_pb2
from tests.hostile.payloads import (
    Document,
    ask_until,
    body_attacks,
    bombs,
    rest_attacks,
    rpc_attacks,
)
from tests.hostile.wire import (
    SERVICE,
    Attack,
    Books,
    Broken,
    RestClient,
    attack_until,
    call_attacks,
    connected,
    http1_attacks,
    http2_attacks,
    impatient_attacks,
    is_open,
    is_readable,
    message_attacks,
    read_answer,
    receive,
    send_until,
    wait_for_end,
    whole,
)

# A steady trickle of good requests over both protocols, whose answers are known and must stay.

Arrays = Mapping[str, NDArray[Any]]
Ask = Callable[[], Arrays]
NUM_IMAGES: Final = 4
RETRY_S: Final = 0.2
# The last bits depend on what shares a batch. Another image's answer is off by tenths.
MAX_DIFFERENCE: Final = 1e-3
MAX_OTHER_PIXELS: Final = 1e-3


class Refused(Exception):
    """429 or RESOURCE_EXHAUSTED: come back later."""


class Failed(Exception):
    """An error, where there should be an answer."""


@dataclass(slots=True)
class GoodAnswers:
    """What became of the good requests, by protocol; safe from any thread."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    largest_difference: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, protocol: str, outcome: str, complaint: str = "") -> None:
        """Count one request."""
        with self._lock:
            self.outcomes.setdefault(protocol, Counter())[outcome] += 1
            if complaint:
                self.complaints.append(f"{protocol}: {complaint}")

    def note_latency(self, protocol: str, seconds: float) -> None:
        """Keep how long an answer took, without the times it was refused."""
        with self._lock:
            self.latencies_s.setdefault(protocol, []).append(seconds)

    def note_difference(self, difference: float) -> None:
        """Keep the largest."""
        with self._lock:
            self.largest_difference = max(self.largest_difference, difference)

    def count(self, outcome: str) -> int:
        """How many there were over all protocols."""
        with self._lock:
            return sum(counts[outcome] for counts in self.outcomes.values())


class Trickle:
    """Good requests over one protocol, one after the other."""

    def __init__(self, protocol: str, asks: Mapping[str, Ask], books: GoodAnswers) -> None:
        self._protocol = protocol
        self._asks = asks
        self._books = books
        self._known: dict[str, Arrays] = {}

    def learn(self) -> None:
        """Ask everything once, in peace; these answers are the ones to keep.

        Raises:
            Failed: There is no answer even then.
        """
        self._known = {name: self._retried(ask) for name, ask in self._asks.items()}

    def ask_until(self, stop: threading.Event, pause_s: float) -> None:
        """Ask on and on, and compare each answer with the one that is known."""
        while not stop.is_set():
            for name in self._asks:
                self._compare_once(name)
                if stop.wait(pause_s):
                    return

    def _compare_once(self, name: str) -> None:
        try:
            answer = self._retried(self._asks[name])
            difference = distance(self._known[name], answer)
        except (Failed, Broken, OSError, grpc.RpcError, ValueError) as error:
            complaint = f"{name}: {type(error).__name__}: {error}"
            self._books.note(self._protocol, "failed", complaint[:300])
            return
        self._books.note_difference(difference)
        is_right = difference <= MAX_DIFFERENCE
        complaint = "" if is_right else f"{name} is off by {difference:.3g}"
        self._books.note(self._protocol, "right" if is_right else "wrong", complaint)

    def _retried(self, ask: Ask) -> Arrays:
        while True:
            begun = time.monotonic()
            try:
                answer = ask()
            except Refused:
                self._books.note(self._protocol, "refused, asked again")
                time.sleep(RETRY_S)
                continue
            self._books.note_latency(self._protocol, time.monotonic() - begun)
            return answer


def distance(known: Arrays, answer: Arrays) -> float:
    """How far an answer is from the known one; infinite where its form is another."""
    if known.keys() != answer.keys():
        return float("inf")
    return max(_distance(known[name], answer[name]) for name in known)


def _distance(known: NDArray[Any], array: NDArray[Any]) -> float:
    if known.shape != array.shape or known.dtype != array.dtype:
        return float("inf")
    if known.dtype.kind in "iu":
        # Labels at the border of two classes may turn with the last bits.
        return float((known != array).mean() / MAX_OTHER_PIXELS * MAX_DIFFERENCE)
    difference = float(np.abs(known - array).max(initial=0.0))
    return difference if np.isfinite(difference) else float("inf")


def over_rest(client: RestClient) -> dict[str, Ask]:
    """Images, texts and masks, as npy."""

    def ask(target: str, body: bytes, media: str) -> Arrays:
        headers = {"Content-Type": media, "Accept": "application/x-npy"}
        answer = client.ask("POST", target, body, headers)
        if answer.status == "429":
            raise Refused
        if answer.status != "200":
            raise Failed(f"{answer.status} {answer.body[:200]!r}")
        return {"array": np.load(BytesIO(answer.body), allow_pickle=False)}

    asks: dict[str, Ask] = {}
    for seed in range(NUM_IMAGES):
        image = whole("JPEG", "RGB", seed)
        for query in ("images:embed?outputs=cls1", "images:segment?classes=dog,grass,sky"):
            asks[f"{query} {seed}"] = partial(ask, f"/v1/{query}", image, "image/jpeg")
        text = json.dumps({"texts": [f"a photo of {seed} dogs", "sky"]}).encode()
        asks[f"texts {seed}"] = partial(ask, "/v1/texts:embed", text, "application/json")
    return asks


def over_grpc(channel: grpc.Channel, limit_s: float) -> dict[str, Ask]:
    """The same as protobuf."""

    def ask(method: str, request: Any, answer_type: Any) -> Arrays:
        stub: Any = channel.unary_unary(SERVICE + method)
        try:
            raw = stub(request.SerializeToString(), timeout=limit_s)
        except grpc.RpcError as error:
            state: Any = error
            if state.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused from None
            raise Failed(f"{state.code().name} {state.details()}"[:300]) from error
        return _arrays(answer_type.FromString(raw))

    asks: dict[str, Ask] = {}
    classes = [segment_pb2.SegmentClass(name=name) for name in ("dog", "grass", "sky")]
    for seed in range(NUM_IMAGES):
        images = [image_pb2.Image(encoded=whole("JPEG", "RGB", seed))]
        texts = [f"a photo of {seed} dogs", "sky"]
        requests: dict[str, tuple[Any, Any]] = {
            "EmbedImages": (
                embed_pb2.EmbedImagesRequest(images=images),
                embed_pb2.EmbedImagesResponse,
            ),
            "SegmentImages": (
                segment_pb2.SegmentImagesRequest(images=images, classes=classes),
                segment_pb2.SegmentImagesResponse,
            ),
            "EmbedTexts": (embed_pb2.EmbedTextsRequest(texts=texts), embed_pb2.EmbedTextsResponse),
        }
        for method, (request, answer) in requests.items():
            asks[f"{method} {seed}"] = partial(ask, method, request, answer)
    return asks


def _arrays(answer: Any) -> Arrays:
    if isinstance(answer, embed_pb2.EmbedTextsResponse):
        return {"texts": np.frombuffer(answer.embeddings.data, "<f4")}
    if isinstance(answer, embed_pb2.EmbedImagesResponse):
        return {"cls1": np.frombuffer(answer.embeddings[0].cls1.data, "<f4")}
    return {"labels": np.frombuffer(answer.segmentations[0].labels.data, "<u2")}


# Clients that take their time: heads and bodies by the byte, silence, readers who do not read.

STEP_S: Final = 0.2
ENDED: Final = frozenset({"closed", "400", "408"})
READ_STEP_BYTES: Final = 64
NATIVE_PATCHES: Final = b"/v1/images:embed?outputs=patches&outputs=values"


def drip(port: int, limit_s: float, data: bytes, rng: random.Random) -> str:
    """Send a byte now and then until the server has had enough."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        for position in range(len(data)):
            send_until(peer, data[position : position + 1], deadline)
            if is_readable(peer):
                break
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S * rng.random())
        return read_answer(peer, deadline).status


def slow_head(port: int, limit_s: float, rng: random.Random) -> str:
    """A head that never ends."""
    return drip(port, limit_s, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"v" * 10**6, rng)


def slow_body(port: int, limit_s: float, rng: random.Random) -> str:
    """A body that comes at a few bytes a second."""
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n"
    length = b"Content-Length: 1000000\r\n\r\n" if rng.random() < 0.5 else b""
    how = length or b"Transfer-Encoding: chunked\r\n\r\n"
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, head + how, deadline)
        while not is_readable(peer):
            send_until(peer, b"x" if length else b"1\r\nx\r\n", deadline)
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S * rng.random())
        return read_answer(peer, deadline).status


def silence(port: int, limit_s: float, rng: random.Random) -> str:
    """Connect and say nothing, or half of it and then nothing."""
    deadline = time.monotonic() + limit_s
    with connected(port) as peer:
        send_until(peer, rng.choice((b"", b"\r\n", b"GET / HT")), deadline)
        data = receive(peer, deadline)
        return data[9:12].decode("latin-1") or "closed"


def reads_nothing(port: int, limit_s: float, rng: random.Random) -> str:
    """Ask for more than all buffers hold, again and again, and never read."""
    deadline = time.monotonic() + limit_s
    image = whole("PNG", "RGB", 1)
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    request = head % (NATIVE_PATCHES, len(image)) + image
    with connected(port, receive_bytes=4096) as peer:
        with suppress(TimeoutError):
            send_until(peer, request * 40, min(deadline, time.monotonic() + 1.0))
        wait_for_end(peer, deadline)
    return "closed"


def reads_slowly(port: int, limit_s: float, rng: random.Random) -> str:
    """The same, with a few bytes a second taken."""
    deadline = time.monotonic() + limit_s
    image = whole("PNG", "RGB", 2)
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    with connected(port, receive_bytes=4096) as peer:
        send_until(peer, (head % (NATIVE_PATCHES, len(image)) + image) * 10, deadline)
        while True:
            peer.settimeout(max(0.01, deadline - time.monotonic()))
            # Once it is reset, what the kernel still holds would only take long to read.
            if not peer.recv(READ_STEP_BYTES) or not is_open(peer):
                return "closed"
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(STEP_S)


def slow_attacks(port: int, limit_s: float) -> Iterator[Attack]:
    """All of this file; each lasts about as long as the server's patience."""
    sends: dict[str, Callable[[int, float, random.Random], str]] = {
        "head": slow_head,
        "body": slow_body,
        "silence": silence,
        "no reader": reads_nothing,
        "reader": reads_slowly,
    }
    for name, send in sends.items():
        yield Attack(
            kind=f"slow {name}", send=partial(send, port, limit_s), allowed=ENDED, limit_s=limit_s
        )


# How the attacked process fares: alive, ready, memory, descriptors, threads; and a slope.

MIB: Final = 1024 * 1024
READY_LIMIT_S: Final = 30.0
INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: seconds since the start, MiB resident, open descriptors, threads."""

    at_s: float
    rss_mib: float
    num_descriptors: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through the memory over time, in MiB a minute."""

    mib_per_min: float
    standard_error: float

    @property
    def is_within_noise(self) -> bool:
        """Whether it is no more than two standard errors above zero."""
        return self.mib_per_min <= 2 * self.standard_error


@dataclass(slots=True)
class VitalSigns:
    """Looks at one process and its readiness, once a second, in a thread of its own."""

    pid: int
    http_port: int
    samples: list[Sample] = field(default_factory=list)
    num_not_ready: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def watch_until(self, stop: threading.Event) -> None:
        """Look until told to stop, or until there is no process."""
        while self.is_alive:
            self.samples.append(self.look())
            if not self.is_ready():
                self.num_not_ready += 1
            if stop.wait(INTERVAL_S):
                return

    def look(self) -> Sample:
        """How it is now.

        Raises:
            OSError: There is no such process any more.
        """
        process = Path(f"/proc/{self.pid}")
        pages = int((process / "statm").read_text().split()[1])
        rss_mib = pages * os.sysconf("SC_PAGE_SIZE") / MIB
        descriptors = len(list((process / "fd").iterdir()))
        threads = len(list((process / "task").iterdir()))
        return Sample(time.monotonic() - self._begun, rss_mib, descriptors, threads)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX"

    def is_ready(self) -> bool:
        """Whether the process says that it takes requests."""
        url = f"http://127.0.0.1:{self.http_port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=READY_LIMIT_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def slope(self, after_s: float) -> Slope:
        """The memory's trend after a warm-up, by least squares.

        Samples a second apart are much alike, which would make the line look surer than it is: the
        standard error counts only as many of them as are worth that many independent ones, by the
        correlation of each residual with the next.
        """
        kept = [sample for sample in self.samples if sample.at_s >= after_s]
        minutes = np.array([sample.at_s for sample in kept]) / 60
        rss = np.array([sample.rss_mib for sample in kept])
        if len(kept) < 10:
            return Slope(float("nan"), float("inf"))
        centred = minutes - minutes.mean()
        spread = float((centred**2).sum())
        slope = float((centred * rss).sum() / spread)
        residuals = rss - rss.mean() - slope * centred
        before, after = residuals[:-1], residuals[1:]
        alike = float((before * after).sum() / max(float((before**2).sum()), 1e-9))
        alike = min(max(alike, 0.0), 0.99)
        worth = max(3.0, len(kept) * (1 - alike) / (1 + alike))
        variance = float((residuals**2).sum()) / len(kept) * worth / (worth - 2)
        return Slope(slope, float(np.sqrt(variance / (spread / len(kept) * worth))))


# All attacks at once on one service, good requests among them, and what was seen meanwhile.

SETTLE_LIMIT_S: Final = 60.0
CHANNEL_OPTIONS: Final = (
    # A connection of its own for each channel, and no limits but the server's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 16 * 1024 * 1024),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, and how.

    Attributes:
        seconds: For which attacks begin; the last ones end a little later.
        seed: Of everything that is drawn.
        limit_s: After which an attack without an answer, or an end, is a hang.
        patience_s: The same for slow clients, which the server must send away by itself.
        num_slow: Slow clients at any time.
        pause_s: Between two good requests of one protocol.
    """

    seconds: float
    seed: int = 0
    limit_s: float = 60.0
    patience_s: float = 30.0
    num_slow: int = 8
    pause_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Attacked:
    """The process of a service on loopback, and its ports."""

    pid: int
    http_port: int
    grpc_port: int
    metrics_port: int

    def num_inside(self) -> int:
        """Requests that it takes for running."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            lines = answer.read().decode().splitlines()
        line = next(line for line in lines if line.startswith("tipserve_inflight "))
        return int(float(line.split()[1]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen: before the first attack, meanwhile, and after the last.

    Attributes:
        books: Of the attacks.
        good: What became of the good requests.
        signs: Of the process, once a second.
        start: Before the first attack.
        end: After the last, when connections had been given up.
        is_alive: Whether the process still ran and was ready then.
        num_inside: Requests that the service then took for running.
        seconds: From the first attack to the end of the last.
    """

    books: Books
    good: GoodAnswers
    signs: VitalSigns
    start: Sample
    end: Sample
    is_alive: bool
    num_inside: int
    seconds: float


def run_campaign(service: Attacked, plan: Plan) -> Outcome:
    """Attack until the time is over, and then wait until the service has settled.

    Raises:
        Failed: Good requests have no answer even before the first attack.
    """
    books, good = Books(), GoodAnswers()
    signs = VitalSigns(service.pid, service.http_port)
    bombs()  # made now, not while the clock runs
    with (
        trickles(service, plan, good) as good_clients,
        RestClient(service.http_port, plan.limit_s) as client,
        open_channels(service, 2) as channels,
    ):
        start = signs.look()
        stop = threading.Event()
        begun = time.monotonic()
        jobs: list[Callable[[], None]] = [partial(signs.watch_until, stop)]
        jobs += [partial(trickle.ask_until, stop, plan.pause_s) for trickle in good_clients]
        jobs += attackers(service, plan, client, channels, stop=stop, books=books)
        threads = [threading.Thread(target=guarded, args=(job, books), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        stop.wait(plan.seconds)
        stop.set()
        for thread in threads:
            thread.join(plan.limit_s + plan.patience_s)
            if thread.is_alive():
                books.note_defect("an attacker did not come back", thread.name)
        seconds = time.monotonic() - begun
    end = settle(service, signs, start)
    is_alive = signs.is_alive and signs.is_ready()
    num_inside = service.num_inside() if is_alive else -1
    return Outcome(books, good, signs, start, end, is_alive, num_inside, seconds)


def attackers(
    service: Attacked,
    plan: Plan,
    client: RestClient,
    channels: Sequence[grpc.Channel],
    *,
    stop: threading.Event,
    books: Books,
) -> Iterator[Callable[[], None]]:
    """One job for each kind of nuisance, several for the slow ones."""
    limit_s = plan.limit_s
    images_channel, rpc_channel = channels
    rpcs = (message_attacks, call_attacks, impatient_attacks)
    groups: list[list[Attack]] = [
        rest_attacks(client, limit_s),
        rpc_attacks(images_channel, limit_s),
        body_attacks(client, limit_s),
        list(http1_attacks(service.http_port, limit_s)),
        list(http2_attacks(service.grpc_port, limit_s)),
        [attack for group in rpcs for attack in group(rpc_channel, limit_s)],
    ]
    slow = list(slow_attacks(service.http_port, plan.patience_s))
    groups += [slow] * plan.num_slow
    for index, group in enumerate(groups):
        yield partial(attack_until, stop, group, books, 1000 * plan.seed + index)
    document = Document(service.http_port, limit_s)
    yield partial(ask_until, stop, document, books, plan.seed)


@contextmanager
def trickles(service: Attacked, plan: Plan, books: GoodAnswers) -> Iterator[list[Trickle]]:
    """Good clients of both protocols, who know all answers."""
    with (
        open_channels(service, 1) as (channel,),
        RestClient(service.http_port, plan.limit_s) as client,
    ):
        rest = over_rest(client)
        rpc = over_grpc(channel, plan.limit_s)
        made = [Trickle("REST", rest, books), Trickle("gRPC", rpc, books)]
        for trickle in made:
            trickle.learn()
        yield made


@contextmanager
def open_channels(service: Attacked, number: int) -> Iterator[list[grpc.Channel]]:
    """Connections of their own."""
    address = f"127.0.0.1:{service.grpc_port}"
    opened: list[Any] = [
        grpc.insecure_channel(address, options=CHANNEL_OPTIONS) for _ in range(number)
    ]
    try:
        yield opened
    finally:
        for channel in opened:
            channel.close()


def guarded(job: Callable[[], None], books: Books) -> None:
    """Do a job; where it breaks, the run must not look as if it had been done."""
    try:
        job()
    except Exception:
        books.note_defect("an attacker broke", traceback.format_exc())


def settle(service: Attacked, signs: VitalSigns, start: Sample) -> Sample:
    """Wait until the connections and requests of the attack are gone, or long enough."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    sample = start
    while signs.is_alive and time.monotonic() < deadline:
        sample = signs.look()
        if sample.num_descriptors <= start.num_descriptors and not service.num_inside():
            break
        time.sleep(0.2)
    return sample


# Ten minutes of good, broken and hostile requests at once, and whether the service stands it.
#
# `python -m tests.hostile.campaign` starts a service of its own and attacks it over REST, gRPC and
# bare TCP, while a trickle of good requests over both protocols must keep its answers. It prints
# what was answered, what hung, and how memory, descriptors and threads went.

CLIENT_TIMEOUT_S = 5.0
SLOW_LIMIT_S = 30.0
# Small, so that good texts are computed again and again; a cache that fills is not a leak.
TEXT_CACHE_BYTES = 1024 * 1024
MMAP_THRESHOLD_BYTES = 1024 * 1024


def main() -> None:
    """Run the campaign and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up-minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="bundled")
    arguments = parser.parse_args()
    # Buffers of images then go back to the system when they are freed; kept for reuse, they would
    # come and go by hundreds of MiB and hide a leak.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MMAP_THRESHOLD_BYTES))
    plan = Plan(seconds=60 * arguments.minutes, seed=arguments.seed, patience_s=SLOW_LIMIT_S)
    warm_up_min = arguments.warm_up_minutes or arguments.minutes / 5
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        flags = (
            f"--model={arguments.model}",
            f"--client-timeout-s={CLIENT_TIMEOUT_S}",
            f"--text-cache-bytes={TEXT_CACHE_BYTES}",
        )
        with running_service(*flags, log_path=log) as service:
            attacked = Attacked(
                service.pid, service.http_port, service.grpc_port, service.metrics_port
            )
            outcome = run_campaign(attacked, plan)
        errors = error_lines(log)
    print(report(outcome, 60 * warm_up_min))
    print(f"exit status after SIGTERM: {service.process.returncode}")
    print(f"log lines of level ERROR, or in no form of ours: {errors.total()}")
    for line, number in errors.most_common(20):
        print(f"  {number} x {line}")


def report(outcome: Outcome, warm_up_s: float) -> str:
    """The numbers, as lines of text."""
    books, good, signs = outcome.books, outcome.good, outcome.signs
    lines = [f"{books.num_attacks} attacks in {outcome.seconds:.0f} s; answers by kind and status:"]
    for kind, counts in sorted(books.statuses.items()):
        told = ", ".join(f"{status} x {n}" for status, n in counts.most_common())
        lines.append(f"  {kind:32} {told}; slowest {books.slowest_s[kind]:.1f} s")
    lines.append("good requests:")
    for protocol, outcomes in sorted(good.outcomes.items()):
        told = ", ".join(f"{name} {n}" for name, n in outcomes.most_common())
        times = np.quantile(good.latencies_s[protocol], (0.5, 0.99)) * 1000
        lines.append(f"  {protocol}: {told}; p50 {times[0]:.0f} ms, p99 {times[1]:.0f} ms")
    lines += [f"  {complaint}" for complaint in good.complaints[:10]]
    lines.append(f"  wrong {good.count('wrong')}, failed {good.count('failed')}")
    lines.append(f"  largest difference from the answer at the start {good.largest_difference:.2g}")
    lines.append(f"hangs: {books.hangs.total()} {dict(books.hangs) or ''}")
    lines.append(f"process alive: {outcome.is_alive}, not ready {signs.num_not_ready} times")
    lines.append(memory(outcome, warm_up_s))
    for name, first, last in (
        ("descriptors", outcome.start.num_descriptors, outcome.end.num_descriptors),
        ("threads", outcome.start.num_threads, outcome.end.num_threads),
    ):
        lines.append(f"{name}: {first} before, {last} after")
    lines.append(f"requests still inside: {outcome.num_inside}")
    lines.append(f"defects: {sum(books.num_defects.values())}")
    for name, examples in sorted(books.defects.items()):
        lines.append(f"  {books.num_defects[name]} x {name}")
        lines += [f"      {example}" for example in examples]
    return "\n".join(lines)


def memory(outcome: Outcome, warm_up_s: float) -> str:
    """Resident memory over time, and the fitted line."""
    samples = outcome.signs.samples
    slope = outcome.signs.slope(warm_up_s)
    step = max(1, len(samples) // 20)
    curve = " ".join(f"{sample.rss_mib:.0f}" for sample in samples[::step])
    verdict = "within noise" if slope.is_within_noise else "GROWS"
    return (
        f"memory: {outcome.start.rss_mib:.0f} MiB before, {outcome.end.rss_mib:.0f} after; "
        f"slope after {warm_up_s / 60:.1f} min {slope.mib_per_min:+.2f} MiB/min, "
        f"standard error {slope.standard_error:.2f}: {verdict}\n"
        f"  every {step} s: {curve}"
    )


def error_lines(log: Path) -> Counter[str]:
    """What the service itself calls an error: message and exception; numbers are left out."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Counter(short(line) for line in lines if is_error(line))


def short(line: str) -> str:
    """What is the same in all log lines of one kind."""
    try:
        record = json.loads(line)
        line = f"{record['logger']}: {record['message']}"
        if "exception" in record:
            line += f" ... {record['exception'].splitlines()[-1]}"
    except (ValueError, KeyError, TypeError):
        pass
    return re.sub(r"\d+", "#", line)[:400]


def is_error(line: str) -> bool:
    """Whether a log line is of the level ERROR, or none of ours at all."""
    try:
        return bool(json.loads(line)["level"] == "ERROR")
    except (ValueError, KeyError, TypeError):
        return True


if __name__ == "__main__":
    main()
