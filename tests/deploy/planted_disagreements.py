"""Faults of manifests that only comparing them finds, as `planted_faults` has them."""

from tests.deploy.planted_faults import (
    AGREEMENT,
    BASE,
    BUDGET,
    CHECKOV,
    CONTAINER,
    CUSTOM,
    KEDA,
    KEYS,
    KSERVE,
    MONITOR,
    MONITORING,
    POD,
    POLICY,
    PREDICTOR,
    PROMISES,
    RESOURCES,
    SCALED,
    SCHEMAS,
    SECOND_SCALER,
    SERVICE,
    SPEC,
    TRIGGER,
)
from tests.deploy.planting import Planted, add, drop, misspell, planted, put

NAME = "app.kubernetes.io/name"
SETTINGS = ("ConfigMap/tipserve-settings", "data")
READY = (*CONTAINER, "readinessProbe", "httpGet")
OTHER_LABELS = {"matchLabels": {NAME: "another"}}

SELECTORS = [
    *planted(
        BASE,
        AGREEMENT,
        {
            "selector of other pods": put({**OTHER_LABELS}, *SPEC, "selector"),
            "spread over other pods": put(
                {**OTHER_LABELS}, *POD, "topologySpreadConstraints", 0, "labelSelector"
            ),
            "Service of no pods": put({NAME: "another"}, *SERVICE, "selector"),
            "budget of no pods": put({**OTHER_LABELS}, *BUDGET, "selector"),
            "budget that lets none go": put(0, *BUDGET, "maxUnavailable"),
        },
    ),
    *planted(
        MONITORING,
        AGREEMENT,
        {
            "monitor of no Service": put({**OTHER_LABELS}, *MONITOR, "selector"),
            "monitor of no port": put("metric", *MONITOR, "endpoints", 0, "port"),
        },
    ),
    *planted(
        KEDA,
        AGREEMENT,
        {
            "target that is not there": put("tipsrv", *SCALED, "scaleTargetRef", "name"),
            "replicas of two masters": put(2, *SPEC, "replicas"),
            "least above most": put(11, *SCALED, "minReplicaCount"),
            "two autoscalers": add(SECOND_SCALER),
            "query of no metric": put("sum(tipserve_queue_size)", *TRIGGER, "metadata", "query"),
        },
    ),
    *planted(
        MONITORING,
        AGREEMENT,
        {
            "alert on what nothing records": put(
                "job:nothing:rate5m > 1", "PrometheusRule", "spec", "groups", 0, "rules", 0, "expr"
            ),
        },
    ),
]

QUANTITIES_AND_PORTS = [
    *planted(
        BASE,
        AGREEMENT,
        {
            "no quantity": put("2GGi", *RESOURCES, "limits", "memory"),
            "more wanted than allowed": put("3Gi", *RESOURCES, "requests", "memory"),
            "size that is none": put("1Gb", *POD, "volumes", 0, "emptyDir", "sizeLimit"),
            "port beyond the last": put(800000, *CONTAINER, "ports", 2, "containerPort"),
            "two ports of one number": put(8000, *CONTAINER, "ports", 2, "containerPort"),
            "port of another number than the server's": put(
                8080, *CONTAINER, "ports", 0, "containerPort"
            ),
            "Service to no port": put("https", *SERVICE, "ports", 0, "targetPort"),
            "policy for no port": put("https", *POLICY, "ingress", 0, "ports", 0, "port"),
            "probe of no port": put("web", *READY, "port"),
        },
    ),
]

SERVER = [
    *planted(
        BASE,
        AGREEMENT,
        {
            "unknown variable": put("1", *SETTINGS, "TIPSERVE_NO_SUCH_SETTING"),
            "value that the server refuses": put("many", *SETTINGS, "TIPSERVE_HTTP_PORT"),
            "path that no route has": put("/v2/health/redy", *READY, "path"),
            "readiness by liveness": put("/v2/health/live", *READY, "path"),
            "too little time to drain": put(30, *POD, "terminationGracePeriodSeconds"),
            "rollout given up too soon": put(60, *SPEC, "progressDeadlineSeconds"),
            "nowhere to write": drop(*POD, "volumes", 0),
            "no mount": drop(*CONTAINER, "volumeMounts", 0),
            "root not forbidden": drop(*POD, "securityContext", "runAsNonRoot"),
            "another user than the image's": put(10002, *POD, "securityContext", "runAsUser"),
            "no ConfigMap": drop("ConfigMap"),
            "no account": drop("ServiceAccount"),
            "variables of other Services": drop(*POD, "enableServiceLinks"),
        },
    ),
    *planted(
        BASE,
        (AGREEMENT, CHECKOV, SCHEMAS),
        {"misspelt probe": misspell("readinesProbe", *CONTAINER, "readinessProbe")},
    ),
    *planted(
        BASE, (AGREEMENT, PROMISES), {"an old image": put("tipserve:0.0.9", *CONTAINER, "image")}
    ),
    *planted(
        KEYS,
        AGREEMENT,
        {
            "no Secret": drop("Secret"),
            "key that the Secret lacks": put(
                "/etc/tipserve/api-keys/keys", *SETTINGS, "TIPSERVE_API_KEYS_FILE"
            ),
        },
    ),
    *planted(
        KSERVE,
        AGREEMENT,
        {
            "no volume for the model": put(
                "pvc://nowhere/model", *PREDICTOR, "model", "storageUri"
            ),
            "too little time to drain": drop(*PREDICTOR, "terminationGracePeriodSeconds"),
        },
    ),
    *planted(
        KSERVE,
        (SCHEMAS, CUSTOM),
        {"grace in words": put("long", *PREDICTOR, "terminationGracePeriodSeconds")},
    ),
]

FAULTS: list[Planted] = [*SELECTORS, *QUANTITIES_AND_PORTS, *SERVER]
