"""Two real replicas, a real Prometheus that scrapes them, a real Alertmanager and whom it tells."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trustme
import yaml

from tests.end_to_end.conftest import Program, Service
from tests.monitoring.background import BackgroundServer
from tests.monitoring.prometheus_queries import Querier
from tests.monitoring.receiver import Receiver, receiving
from tests.monitoring.shortened_rules import shorten_routing
from tests.tools import find_tool, miss

# A request of eight images fills it, so that a second at the same time is too much.
MAX_QUEUE_PATCHES: Final = 600
NUM_STARTS: Final = 3
# As an operator would label what it scrapes.
NAMESPACE: Final = "here"
PODS: Final = ("steady", "victim")
KEY: Final = "the-key-of-this-test"
# Where Debian's Alertmanager looks for what it cannot start without.
TEMPLATES: Final = Path("/usr/share/prometheus/alertmanager/default.tmpl")


class Replica:
    """The program, which can be killed and comes back on the same ports."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = ("--model=bundled", *arguments)
        self._fixed_ports: tuple[str, ...] = ()
        self.program = Program(*self._arguments)

    def wait_ready(self) -> Service:
        """Wait for it; gives its ports."""
        ready = self.program.wait_for("ready")
        ports = {name: ready[name] for name in ("http", "grpc", "metrics")}
        self._fixed_ports = tuple(f"--{name}-port={port}" for name, port in ports.items())
        return Service(self.program, ports)

    def end(self) -> None:
        """Whatever runs of it."""
        self.program.end()

    def kill(self) -> None:
        """As a machine that is gone, or the kernel when memory is short."""
        self.program.process.kill()
        self.program.end()

    def come_back(self) -> None:
        """Run again, as under a Deployment: anew where it ends, as for a port that is taken."""
        for _ in range(NUM_STARTS):
            self.program = Program(*self._arguments, *self._fixed_ports)
            try:
                self.wait_ready()
            except AssertionError:
                self.end()
            else:
                return
        raise AssertionError("".join(self.program.log))


@dataclass(frozen=True)
class WatchedSite:
    """All that runs.

    Attributes:
        steady: A replica that nothing happens to.
        victim: Another, with TLS, keys and a short queue.
        victim_url: Where the victim answers.
        context: With which callers trust the victim.
        prometheus: The one that scrapes both.
        receiver: Of Alertmanager's webhook, and of the steady replica's spans.
    """

    steady: Service
    victim: Replica
    victim_url: str
    context: ssl.SSLContext
    prometheus: Querier
    receiver: Receiver


@contextmanager
def running_site(folder: Path, groups: Sequence[Any], routing: Path) -> Iterator[WatchedSite]:
    """All of it on free ports; everything is ended afterwards.

    Args:
        folder: An empty one.
        groups: Of rules, for Prometheus.
        routing: A configuration of Alertmanager; it tells the receiver in place of its webhooks.
    """
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(folder / "tls.key")
    leaf.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    (folder / "keys").write_text(f"{KEY}\n", encoding="utf-8")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        steady = Replica(f"--otlp-endpoint={receiver.url}")
        stack.callback(steady.end)
        victim = Replica(
            f"--api-keys-file={folder / 'keys'}",
            f"--tls-cert={folder / 'tls.crt'}",
            f"--tls-key={folder / 'tls.key'}",
            f"--max-queue-patches={MAX_QUEUE_PATCHES}",
            f"--max-batch-patches={MAX_QUEUE_PATCHES}",
        )
        stack.callback(victim.end)
        alertmanager = BackgroundServer(alertmanager_command(folder, routing, receiver.url))
        stack.callback(alertmanager.end)
        service, other = steady.wait_ready(), victim.wait_ready()
        ports = (service.ports["metrics"], other.ports["metrics"])
        config = prometheus_config(alertmanager.url, dict(zip(PODS, ports, strict=True)))
        prometheus = BackgroundServer(prometheus_command(folder, config, groups))
        stack.callback(prometheus.end)
        yield WatchedSite(
            steady=service,
            victim=victim,
            victim_url=f"https://127.0.0.1:{other.ports['http']}",
            context=context,
            prometheus=Querier(prometheus.url),
            receiver=receiver,
        )


def alertmanager_command(folder: Path, routing: Path, webhook_url: str) -> list[str]:
    """Alertmanager alone, without peers, on the fast clock of the rules."""
    if not TEMPLATES.exists():
        miss(f"{TEMPLATES} is missing: run scripts/install_tools.sh as root")
    config = shorten_routing(yaml.safe_load(routing.read_text(encoding="utf-8")))
    for receiver in config["receivers"]:
        for webhook in receiver["webhook_configs"]:
            webhook["url"] = f"{webhook_url}/alerts"
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [
        find_tool("prometheus-alertmanager"),
        f"--config.file={path}",
        "--web.listen-address=127.0.0.1:0",
        "--cluster.listen-address=",
        f"--storage.path={folder / 'alertmanager'}",
    ]


def prometheus_config(alertmanager_url: str, targets: dict[str, int]) -> dict[str, Any]:
    """A scrape each second, with the labels that the operator would give."""
    alertmanagers = [{"targets": [alertmanager_url.removeprefix("http://")]}]
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "alerting": {"alertmanagers": [{"static_configs": alertmanagers}]},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": "tipserve",
                "static_configs": [
                    {
                        "targets": [f"127.0.0.1:{port}"],
                        "labels": {"namespace": NAMESPACE, "pod": pod},
                    }
                    for pod, port in targets.items()
                ],
            }
        ],
    }


def prometheus_command(folder: Path, config: dict[str, Any], groups: Sequence[Any]) -> list[str]:
    """Prometheus with this configuration and these rules."""
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": list(groups)}), encoding="utf-8")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [
        find_tool("prometheus"),
        f"--config.file={path}",
        "--web.listen-address=127.0.0.1:0",
        f"--storage.tsdb.path={folder / 'prometheus'}",
    ]
