"""All attacks at once on one service, good requests among them, and what was seen meanwhile."""

import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from benchmarks.attacks import (
    bodies,
    documented,
    good_requests,
    image_requests,
    raw_http,
    raw_http2,
    raw_rpc,
    slow_clients,
)
from benchmarks.attacks.attack import Attack, Books, attack_until
from benchmarks.attacks.bombs import bombs
from benchmarks.attacks.good_requests import GoodAnswers, Trickle
from benchmarks.attacks.rest_client import RestClient
from benchmarks.attacks.vital_signs import Sample, VitalSigns

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
    rpcs = (raw_rpc.message_attacks, raw_rpc.call_attacks, raw_rpc.impatient_attacks)
    groups: list[list[Attack]] = [
        image_requests.rest_attacks(client, limit_s),
        image_requests.rpc_attacks(images_channel, limit_s),
        bodies.attacks(client, limit_s),
        list(raw_http.attacks(service.http_port, limit_s)),
        list(raw_http2.attacks(service.grpc_port, limit_s)),
        [attack for group in rpcs for attack in group(rpc_channel, limit_s)],
    ]
    slow = list(slow_clients.attacks(service.http_port, plan.patience_s))
    groups += [slow] * plan.num_slow
    for index, group in enumerate(groups):
        yield partial(attack_until, stop, group, books, 1000 * plan.seed + index)
    document = documented.Document(service.http_port, limit_s)
    yield partial(documented.ask_until, stop, document, books, plan.seed)


@contextmanager
def trickles(service: Attacked, plan: Plan, books: GoodAnswers) -> Iterator[list[Trickle]]:
    """Good clients of both protocols, who know all answers."""
    with (
        open_channels(service, 1) as (channel,),
        RestClient(service.http_port, plan.limit_s) as client,
    ):
        rest = good_requests.over_rest(client)
        rpc = good_requests.over_grpc(channel, plan.limit_s)
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
