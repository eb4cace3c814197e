"""Receives traces like a collector (OTLP over HTTP) and prints each as a tree.

Run `python examples/watch_traces.py` and `tipserve serve --otlp-endpoint http://localhost:4318`.
Needs the extra `otel`, and no collector.
"""

import argparse
import gzip
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATH = "/v1/traces"
PROTOBUF = "application/x-protobuf"


def trees(request: Any) -> list[str]:
    """Format the traces of one export."""
    texts = []
    for of_resource in request.resource_spans:
        resource = plain(of_resource.resource.attributes)
        sender = " ".join(
            str(resource[name]) for name in ("service.name", "k8s.pod.name") if name in resource
        )
        traces: dict[bytes, list[Any]] = defaultdict(list)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                traces[span.trace_id].append(span)
        for trace_id, spans in traces.items():
            texts.append("\n".join([f"trace {trace_id.hex()}  {sender}", *tree(spans)]))
    return texts


def tree(spans: Iterable[Any]) -> list[str]:
    """Format one trace, children under their parents, without the caller's own span."""
    children: dict[bytes, list[Any]] = defaultdict(list)
    here = {span.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        children[span.parent_span_id if span.parent_span_id in here else b""].append(span)

    def below(parent: bytes, indent: str) -> list[str]:
        lines = []
        for span in children[parent]:
            lines += [indent + line(span), *below(span.span_id, indent + "  ")]
        return lines

    return below(b"", "  ")


def line(span: Any) -> str:
    """Format name, id, milliseconds, attributes and links of a span."""
    took_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    said = "".join(f" {name}={value}" for name, value in plain(span.attributes).items())
    parent = f" parent={span.parent_span_id.hex()}" if span.parent_span_id else ""
    return f"{span.name} [{span.span_id.hex()}{parent}] {took_ms:.2f} ms{said}"


def plain(attributes: Iterable[Any]) -> Mapping[str, object]:
    """Convert attributes to Python values."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


class Receiver(BaseHTTPRequestHandler):
    """Accepts exports and prints them."""

    def do_POST(self) -> None:
        """Handle one export."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_ours = self.path == PATH and self.headers.get("Content-Type") == PROTOBUF
        if is_ours:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for text in trees(ExportTraceServiceRequest.FromString(body)):
                print(text, flush=True)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if is_ours else 404)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """Do not log requests."""


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=4318, help="0 for a free port")
    with ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Receiver) as server:
        print(f"waiting for traces at http://localhost:{server.server_port}", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
