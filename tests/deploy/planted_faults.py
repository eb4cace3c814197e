"""Faults to plant into copies of the manifests, each with the validators that must find it."""

from tests.deploy.planting import Planted, drop, misspell, planted, put

SCHEMAS = "schemas"
CUSTOM = "custom resources"
CHECKOV = "checkov"
AGREEMENT = "cross-references"
PROMISES = "promises"

BASE = "kubernetes/base"
KEYS = "kubernetes/components/api-keys"
KEDA = "kubernetes/components/keda"
KSERVE = "kubernetes/overlays/kserve"
MONITORING = "kubernetes/components/monitoring"
RULES = "monitoring"
TRAINJOB = "training/trainjob"
RAYJOB = "bulk/rayjob.yaml"

SPEC = ("Deployment", "spec")
POD = (*SPEC, "template", "spec")
CONTAINER = (*POD, "containers", 0)
CONTEXT = (*CONTAINER, "securityContext")
RESOURCES = (*CONTAINER, "resources")
SERVICE = ("Service/tipserve", "spec")
BUDGET = ("PodDisruptionBudget", "spec")
POLICY = ("NetworkPolicy", "spec")
SCALED = ("ScaledObject", "spec")
TRIGGER = (*SCALED, "triggers", 0)
MONITOR = ("ServiceMonitor", "spec")
RULE = ("PrometheusRule", "spec", "groups", 0, "rules", 0)
HEAD = ("RayJob", "spec", "rayClusterSpec", "headGroupSpec")
PREDICTOR = ("InferenceService", "spec", "predictor")
RUNTIME = ("ServingRuntime", "spec")
TRAINER = ("TrainJob", "spec", "trainer")

SECOND_SCALER = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "second"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "tipserve"},
        "minReplicas": 1,
        "maxReplicas": 2,
    },
}
VERSION = "app.kubernetes.io/version"
NODE_PATH = {"name": "tmp", "hostPath": {"path": "/tmp"}}
PLAIN_KEY = [{"name": "GOOGLE_API_KEY", "value": "in the open"}]
KEY_OF_SECRET = {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}

OF_SCHEMAS = [
    *planted(
        BASE,
        SCHEMAS,
        {
            "replicas as text": put("2", *SPEC, "replicas"),
            "misspelt surge": misspell("maxSurg", *SPEC, "strategy", "rollingUpdate", "maxSurge"),
            "misspelt port": misspell("targetPrt", *SERVICE, "ports", 0, "targetPort"),
            "misspelt spread": misspell("skew", *POD, "topologySpreadConstraints", 0, "maxSkew"),
            "misspelt budget": misspell("podSelector", *BUDGET, "unhealthyPodEvictionPolicy"),
            "mount without a place": drop(*CONTAINER, "volumeMounts", 0, "mountPath"),
            "policies in text": put("Egress", *POLICY, "policyTypes"),
        },
    ),
    *planted(
        "kubernetes/components/hpa",
        SCHEMAS,
        {
            "misspelt window": misspell(
                "stabilizationSeconds",
                *("HorizontalPodAutoscaler", "spec", "behavior", "scaleDown"),
                "stabilizationWindowSeconds",
            ),
        },
    ),
    *planted("bulk", SCHEMAS, {"tries as text": put("20", "Job", "spec", "backoffLimit")}),
    *planted(
        "training/chain",
        SCHEMAS,
        {"misspelt plan": misspell("timezone", "CronJob", "spec", "schedule")},
    ),
]

OF_CUSTOM_RESOURCES = [
    *planted(
        KEDA,
        CUSTOM,
        {
            "unknown field": put(1, *SCALED, "bogus"),
            "no triggers": drop(*SCALED, "triggers"),
            "number in metadata": put(3, *TRIGGER, "metadata", "threshold"),
            "replicas as text": put("2", *SCALED, "minReplicaCount"),
            "misspelt policies": misspell(
                "policie",
                *(*SCALED, "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleUp"),
                "policies",
            ),
            "unknown kind": put("ScaledThing", "ScaledObject", "kind"),
        },
    ),
    *planted(
        MONITORING,
        CUSTOM,
        {
            "interval in words": put("15 sec", *MONITOR, "endpoints", 0, "interval"),
            "misspelt timeout": misspell("timeout", *MONITOR, "endpoints", 0, "scrapeTimeout"),
            "no selector": drop(*MONITOR, "selector"),
        },
    ),
    *planted(
        RULES,
        CUSTOM,
        {
            "duration in words": put("5 minutes", *RULE, "for"),
            "misspelt annotations": put({}, *RULE, "annotation"),
            "number for a label": put({"severity": 1}, *RULE, "labels"),
        },
    ),
    *planted(
        KSERVE,
        CUSTOM,
        {
            "replicas as text": put("2", *PREDICTOR, "minReplicas"),
            "unknown field": put(1, *PREDICTOR, "model", "bogus"),
            "number for a version": put(1, *RUNTIME, "supportedModelFormats", 0, "version"),
        },
    ),
    *planted(
        RAYJOB,
        CUSTOM,
        {
            "unknown field": put(1, "RayJob", "spec", "bogus"),
            "number in a map of texts": put(0, *HEAD, "rayStartParams", "num-cpus"),
            "no parameters": drop(*HEAD, "rayStartParams"),
            "unknown mode": put("SSH", "RayJob", "spec", "submissionMode"),
        },
    ),
    *planted(
        RAYJOB,
        (CUSTOM, SCHEMAS),
        {
            "misspelt in its pods": misspell(
                "mounts", *(*HEAD, "template", "spec", "containers", 0), "volumeMounts"
            ),
        },
    ),
    *planted(
        TRAINJOB,
        CUSTOM,
        {
            "unknown field": put(1, *TRAINER, "bogus"),
            "nodes in words": put("two", *TRAINER, "numNodes"),
        },
    ),
]

OF_CHECKOV = [
    *planted(
        BASE,
        CHECKOV,
        {
            "no policy": drop("NetworkPolicy"),
            "privileged": put(True, *CONTEXT, "privileged"),
        },
    ),
    *planted(
        BASE,
        (CHECKOV, AGREEMENT),
        {
            "nothing about users": drop(*POD, "securityContext"),
            "root": put(0, *POD, "securityContext", "runAsUser"),
            "any system call": drop(*POD, "securityContext", "seccompProfile"),
            "root can be written": drop(*CONTEXT, "readOnlyRootFilesystem"),
            "capabilities": drop(*CONTEXT, "capabilities"),
            "may gain privileges": put(True, *CONTEXT, "allowPrivilegeEscalation"),
            "token": drop(*POD, "automountServiceAccountToken"),
        },
    ),
    *planted(
        BASE,
        (CHECKOV, PROMISES),
        {
            "processes of the node": put(True, *POD, "hostPID"),
            "network of the node": put(True, *POD, "hostNetwork"),
        },
    ),
    *planted(
        BASE,
        (CHECKOV, AGREEMENT, PROMISES),
        {
            "no limit of memory": drop(*RESOURCES, "limits"),
            "an image that moves": put("tipserve:latest", *CONTAINER, "image"),
        },
    ),
    *planted(
        BASE,
        CHECKOV,
        {
            "a secret as a variable": put(
                [{"name": "HF", "valueFrom": KEY_OF_SECRET}], *CONTAINER, "env"
            )
        },
    ),
]

OF_PROMISES = [
    *planted(
        BASE,
        PROMISES,
        {
            "limit of CPUs": put("1", *RESOURCES, "limits", "cpu"),
            "key in a variable": put(PLAIN_KEY, *CONTAINER, "env"),
            "another version": put("0.0.9", "Service/tipserve", "metadata", "labels", VERSION),
        },
    ),
    *planted(BASE, (PROMISES, AGREEMENT), {"path of the node": put(NODE_PATH, *POD, "volumes", 0)}),
    *planted(
        KEYS,
        PROMISES,
        {"a key in the Secret": put("c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "Secret", "data", "api_keys")},
    ),
    *planted(TRAINJOB, PROMISES, {"an old image": put("tipserve:0.0.9-train", *TRAINER, "image")}),
    *planted(
        RAYJOB,
        PROMISES,
        {
            "an old image": put(
                "tipserve:0.0.9-ray", *HEAD, "template", "spec", "containers", 0, "image"
            )
        },
    ),
]

FAULTS: list[Planted] = [*OF_SCHEMAS, *OF_CUSTOM_RESOURCES, *OF_CHECKOV, *OF_PROMISES]
