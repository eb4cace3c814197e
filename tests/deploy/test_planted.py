"""Faults are planted one at a time, and a check that knows their meaning finds each."""

from collections.abc import Callable, Iterable

import pytest
import yaml

from tests.deploy import cross_references, other_files, schemas
from tests.deploy.kustomizations import DEPLOY, text_of

ROOT = DEPLOY.parent
Check = Callable[[str], Iterable[str]]
FILES: dict[str, Check] = {
    "deploy/compose.yaml": other_files.compose,
    "Dockerfile": other_files.dockerfile,
    ".github/workflows/release.yml": other_files.release,
}
COMPOSE, DOCKERFILE, RELEASE = FILES
# Documents or a file; a text, the first place after it that is replaced, and what is planted there.
PLANTED = [
    # Probes and stops.
    ("cpu", "startupProbe:", "path: /v2/health/ready", "path: /v2/health/live"),
    ("cpu", "failureThreshold: 90", "path: /v2/health/ready", "path: /v2/health/live"),
    ("cpu", "name: front\n", "path: /v2/health/ready", "path: /metrics"),
    ("cpu", "name: front\n", "port: proxy-metrics", "port: http"),
    ("cpu", "", "failureThreshold: 90", "failureThreshold: 9"),
    ("cpu", "", "sleep 8; kill -QUIT 1", "sleep 8; kill -TERM 1"),
    ("cpu", "", "sleep 8; kill -QUIT 1", "sleep 12; kill -QUIT 1"),
    ("cpu", "", "seconds: 10", "seconds: 25"),
    ("kserve/kserve.yaml", "", 'value: "10"', 'value: "40"'),
    # Replicas.
    ("cpu", "rollingUpdate:", "maxUnavailable: 10%", "maxUnavailable: 100%"),
    ("cpu", "rollingUpdate:", "maxSurge: 25%", "maxSurge: 0"),
    ("cpu", "kind: PodDisruptionBudget", "maxUnavailable: 10%", "maxUnavailable: 100%"),
    ("cpu", "", "topologyKey: topology.kubernetes.io/zone", "topologyKey: topology.k8s.io/zones"),
    ("production", "_seconds_sum", 'stage="queue"', 'stage="run"'),
    ("production", "_seconds_count", 'stage="queue"', 'stage="run"'),
    ("production", "name: queue-wait", 'threshold: "0.5"', 'threshold: "50"'),
    ("production", "name: busy-lanes", 'threshold: "0.7"', 'threshold: "7"'),
    ("production", "", "metricType: Value", "metricType: AverageValue"),
    ("production", "", "tipserve_lanes{", "tipserve_lane{"),
    ("production", "", 'job="tipserve"', 'job="other"'),
    # The proxy and the server behind it.
    ("cpu", "", 'TRUSTED_PROXIES: "127.0.0.1"', 'TRUSTED_PROXIES: "10.0.0.1"'),
    ("cpu", "", 'METRICS_HOST: "0.0.0.0"', 'METRICS_HOST: "127.0.0.1"'),
    ("cpu", "", 'TIPSERVE_HOST: "127.0.0.1"', 'TIPSERVE_HOST: "0.0.0.0"'),
    ("cpu", "", 'GRPC_PORT: "8011"', 'GRPC_PORT: "8012"'),
    ("everything", "", "PROXY_TLS_CERT:", "PROXY_TLS_CERTS:"),
    ("cpu", "", "memory: 512Mi", "memory: 64Mi"),
    ("cpu", "name: tipserve\n", "memory: 2Gi", "memory: 1Gi"),
    # Networks.
    ("cpu", "", "enableServiceLinks: false", "enableServiceLinks: true"),
    ("kserve/kserve.yaml", "", "enableServiceLinks: false", "enableServiceLinks: true"),
    ("cpu", "", "targetPort: grpc", "targetPort: grcp"),
    ("cpu", "", "appProtocol: kubernetes.io/h2c", "appProtocol: http"),
    ("cpu", "kind: NetworkPolicy", "port: grpc, protocol: TCP", "port: grpc, protocol: UDP"),
    ("cpu", "", "kubernetes.io/metadata.name: monitoring", "name: monitoring"),
    ("cpu", "namespaceSelector: {}", "port: grpc", "port: metrics"),
    ("everything", "", "/grpc.health.v1.Health", "/grpc.health.v1.health"),
    ("everything", "kind: GRPCRoute", "port: 8001", "port: 8002"),
    ("everything", "kind: Ingress", "name: grpc", "name: grcp"),
    ("production", "", "jobLabel: app.kubernetes.io/instance", "jobLabel: name"),
    ("everything", "", "jobLabel: app.kubernetes.io/instance", "jobLabel: app.kubernetes.io/name"),
    ("production", "", "replacement: ${1}-proxy", "replacement: ${1}"),
    # Files and rights.
    ("everything", "secretName: photos-api-keys", "defaultMode: 0440", "defaultMode: 0400"),
    ("everything", "secretName: photos-tls", "defaultMode: 0440", "defaultMode: 0400"),
    ("everything", "", "fsGroup: 10001", "supplementalGroups: [10001]"),
    ("training/chain-gemini", "", "defaultMode: 288", "defaultMode: 256"),
    ("gpu", "name: build-engines", "name: tipserve-settings", "name: tipserve-setting"),
    ("cpu", "", "readOnlyRootFilesystem", "readOnlyRootFileSystem"),
    # Files beside the manifests.
    (RELEASE, "", 'exit-code: "1"', 'exit-code: "0"'),
    (RELEASE, "chart:", "needs: images", "needs: tests"),
    (RELEASE, "", 'tags: ["v*"]', 'branches: ["main"]'),
    (DOCKERFILE, "HEALTHCHECK --", "'8002'", "'8000'"),
    (DOCKERFILE, "HEALTHCHECK --", "TIPSERVE_METRICS_PORT", "TIPSERVE_HTTP_PORT"),
    (DOCKERFILE, "HEALTHCHECK --", "/v2/health/ready", "/v2/health"),
    (COMPOSE, "  tipserve:", "stop_grace_period: 60s", "stop_grace_period: 6s"),
    (COMPOSE, "  proxy:", "mem_limit: 512m", "mem_limit: 25m"),
    (COMPOSE, "  tipserve:", "mem_limit: 2g", "mem_limit: 1g"),
    (COMPOSE, "", "TRUSTED_PROXIES: 10.213.7.2", "TRUSTED_PROXIES: 10.0.0.1"),
    (COMPOSE, "", "GRPC_SERVER: 10.213.7.3:8001", "GRPC_SERVER: 10.213.7.3:8000"),
]


def text_with(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8") if name in FILES else text_of(name)


def found(name: str, text: str) -> list[str]:
    """The faults of a file, or of the documents of a manifest."""
    if name in FILES:
        return [*FILES[name](text)]
    documents = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]
    return cross_references.faults(documents) or [*schemas.faults_of_builtin(documents)]


@pytest.mark.parametrize("name", FILES)
def test_files_have_no_fault(name: str) -> None:
    assert found(name, text_with(name)) == []


@pytest.mark.parametrize(("name", "after", "there", "planted"), PLANTED, ids=str)
def test_a_planted_fault_is_found(name: str, after: str, there: str, planted: str) -> None:
    text = text_with(name)
    begin = text.index(there, text.index(after))
    told = found(name, text[:begin] + planted + text[begin + len(there) :])
    assert {*told} - {*found(name, text)}
