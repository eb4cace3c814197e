"""Two real replicas, a real Prometheus and Alertmanager, and a webhook receiver."""

import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import trustme
import yaml

from tests.end_to_end.conftest import Program, Service
from tests.monitoring.prometheus_queries import divided
from tests.tools import find_tool, miss

LIMIT_S: Final = 60.0
POLL_S: Final = 0.05
LISTENING: Final = re.compile(r'msg="Listening on" address=(\S+)')
# Queue limit: one request of eight images fills it, so a second one is refused.
MAX_QUEUE_PATCHES: Final = 600
NUM_STARTS: Final = 3
# Labels as set by the Prometheus operator.
NAMESPACE: Final = "here"
PODS: Final = ("steady", "victim")
KEY: Final = "the-key-of-this-test"
# Default template of Debian's Alertmanager, required at its start.
TEMPLATES: Final = Path("/usr/share/prometheus/alertmanager/default.tmpl")


@contextmanager
def background(command: Sequence[str], log: Path) -> Iterator[str]:
    """Run Prometheus or Alertmanager on a free port; yields its base URL when it is ready."""
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            until = time.monotonic() + LIMIT_S
            while True:
                text = log.read_text()
                assert process.poll() is None, text
                assert time.monotonic() < until, text
                found = LISTENING.search(text)
                url = f"http://{found[1]}" if found else ""
                if url and httpx.get(f"{url}/-/ready", timeout=LIMIT_S).is_success:
                    break
                time.sleep(POLL_S)
            yield url
        finally:
            process.terminate()


@dataclass
class Receiver:
    """Records Alertmanager's webhooks, with their `receiver`, and accepts spans as a collector."""

    url: str
    notified: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/alerts":
                sent = json.loads(body)
                receiver.notified += [a | {"receiver": sent["receiver"]} for a in sent["alerts"]]
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


class Querier:
    """Asks one Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[Any]:
        """The samples of an instant query; a range's value counts as one.

        Raises:
            AssertionError: Prometheus rejects the query.
        """
        return self._ask("query", query=expression)["result"]  # type: ignore[no-any-return]

    def alerts(self) -> list[dict[str, str]]:
        """Labels of all firing and pending alerts."""
        return [alert["labels"] for alert in self._ask("alerts")["alerts"]]

    def rules(self) -> Sequence[Any]:
        """Every loaded rule, with its health."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, path: str, **fields: str) -> Any:
        method = "POST" if fields else "GET"
        url = f"{self._url}/api/v1/{path}"
        answer = httpx.request(method, url, data=fields or None, timeout=LIMIT_S).json()
        assert answer["status"] == "success", (fields, answer)
        return answer["data"]


class Replica:
    """The program, which can be killed and restarted on the same ports."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = ("--model=bundled-student", *arguments)
        self._fixed_ports: tuple[str, ...] = ()
        self.program = Program(*self._arguments)

    def wait_ready(self) -> Service:
        """Wait until it is ready; returns its ports."""
        ready = self.program.wait_for("ready")
        ports = {name: ready[name] for name in ("http", "grpc", "metrics")}
        self._fixed_ports = tuple(f"--{name}-port={port}" for name, port in ports.items())
        return Service(self.program, ports)

    def end(self) -> None:
        """Stop the current process, if it runs."""
        self.program.end()

    def kill(self) -> None:
        """Kill it, as by a machine failure or the kernel's OOM killer."""
        self.program.process.kill()
        self.program.end()

    def come_back(self) -> None:
        """Restart it as a Deployment would: again if it exits, for example on a port in use."""
        for _ in range(NUM_STARTS):
            self.program = Program(*self._arguments, *self._fixed_ports)
            try:
                self.wait_ready()
            except AssertionError:
                self.program.end()
            else:
                return
        raise AssertionError("".join(self.program.log))


@dataclass(frozen=True)
class WatchedSite:
    """A replica without faults, and a victim with TLS, keys and a short queue, both watched.

    Attributes:
        context: TLS context that trusts the victim.
        receiver: Receiver of Alertmanager's webhook and of the steady replica's spans.
    """

    steady: Service
    victim: Replica
    victim_url: str
    context: ssl.SSLContext
    prometheus: Querier
    receiver: Receiver


@contextmanager
def running_site(folder: Path, groups: Sequence[Any], routing: Path) -> Iterator[WatchedSite]:
    """Run the whole site on free ports; stops everything afterwards.

    Args:
        folder: An empty folder.
        groups: Rule groups for Prometheus.
        routing: Alertmanager's configuration; its webhooks are replaced by the receiver.
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
        command = alertmanager_command(folder, routing, receiver.url)
        alertmanager_url = stack.enter_context(background(command, folder / "alertmanager.log"))
        service, other = steady.wait_ready(), victim.wait_ready()
        ports = (service.ports["metrics"], other.ports["metrics"])
        config = prometheus_config(alertmanager_url, dict(zip(PODS, ports, strict=True)))
        command = prometheus_command(folder, config, groups)
        prometheus_url = stack.enter_context(background(command, folder / "prometheus.log"))
        yield WatchedSite(
            steady=service,
            victim=victim,
            victim_url=f"https://127.0.0.1:{other.ports['http']}",
            context=context,
            prometheus=Querier(prometheus_url),
            receiver=receiver,
        )


def alertmanager_command(folder: Path, routing: Path, webhook_url: str) -> list[str]:
    """Command of Alertmanager without peers, with shortened intervals."""
    if not TEMPLATES.exists():
        miss(f"{TEMPLATES} is missing: run scripts/install_tools.sh as root")
    config = yaml.safe_load(routing.read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        for name in {"group_wait", "group_interval", "repeat_interval"} & route.keys():
            route[name] = divided(route[name], at_least_s=1)
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
    """Scrape every second, with the labels of the operator."""
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
    """Command of Prometheus with this configuration and these rules."""
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": list(groups)}), encoding="utf-8")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [
        find_tool("prometheus"),
        f"--config.file={path}",
        "--web.listen-address=127.0.0.1:0",
        f"--storage.tsdb.path={folder / 'prometheus'}",
    ]
