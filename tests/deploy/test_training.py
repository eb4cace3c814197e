"""Manifests of retraining: order, variables, places and users fit together, in every variant."""

import re

import pytest
import yaml

from model.conversion.commands import new_app
from model.package import open_package
from model.publication import CURRENT
from model.scores.gate import judge, read_rules
from tests.deploy.kustomizations import build_together
from tests.deploy.training_steps import (
    FOLDER,
    REFERENCE,
    build,
    chain_pods,
    chain_steps,
    commands,
    environment,
    expand,
    find,
)
from tests.deploy.workloads import Manifest, workloads
from training.__main__ import MISTAKE, REFUSED, build_parser
from training.boards import METRICS_PORT

CHAINS = ("chain", "chain-gemini", "chain-dev")
DISTRIBUTED = ("trainjob", "trainjob-dev", "indexed-job", "indexed-job-dev")
KINDS = ("pretrain", "distill")
ORDER = ["caption", "distill", "hand-over", "publish"]
PATH = re.compile(r"(?<![\w./])/[a-z][\w./()$-]*")
# Options that a step writes to.
OUTPUTS = ("--output", "--runs", "--repository")
GPU = "nvidia.com/gpu"
LABELS = {
    "batch.kubernetes.io/job-name": "tipserve-retrain-1",
    "batch.kubernetes.io/job-completion-index": "0",
}
EVERY = [*((name, step) for name in CHAINS for step in ORDER)]
EVERY += [(name, kind) for name in DISTRIBUTED for kind in KINDS]
every_container = pytest.mark.parametrize(("name", "part"), EVERY)
every_kind = pytest.mark.parametrize("kind", KINDS)


def pod_and_container(name: str, part: str) -> tuple[Manifest, Manifest]:
    """The pod's spec and the container of a chain's step or of a distributed job."""
    documents = build(name)
    if name in CHAINS:
        pods = chain_pods(documents)
    else:
        named = {one.document["metadata"]["name"]: one.pod for one in workloads(documents)}
        pods = [named[f"tipserve-{part}"]]
    every = [
        (pod, one) for pod in pods for one in (*pod.get("initContainers", []), *pod["containers"])
    ]
    ((pod, container),) = [pair for pair in every if name not in CHAINS or pair[1]["name"] == part]
    return pod, container


def values_of(name: str, container: Manifest) -> dict[str, str]:
    return environment(container, build(name), LABELS)


def commands_of(name: str, container: Manifest) -> list[list[str]]:
    """The container's commands, with values for their variables."""
    values = {"run": "/runs/tipserve-retrain-1", **values_of(name, container)}
    return [[expand(x, values) for x in words] for words in commands(container, build(name))]


@pytest.mark.parametrize("name", CHAINS)
def test_steps_run_in_order_with_every_size_and_only_the_gate_fails_for_good(name: str) -> None:
    documents = build(name)
    steps = chain_steps(documents)
    assert [step["name"] for step in steps] == ORDER
    judged = commands(steps[-1], documents)
    assert [words[4] for words in judged] == ["publish", "evaluate", "gate", "export", "publish"]
    assert f"--served=/models/{CURRENT}" in judged[1]
    every = " ".join(
        word for step in steps for words in commands(step, documents) for word in words
    )
    unused = find(documents, "ConfigMap", "tipserve-retrain")["data"].keys() - set(
        REFERENCE.findall(every)
    )
    assert unused == ({"CAPTION_BATCH"} if name == "chain-gemini" else set())
    for one in workloads(documents):
        job = one.document["spec"]["jobTemplate"]["spec"]
        values = job["podFailurePolicy"]["rules"][-1]["onExitCodes"]["values"]
        is_gate = one.document["metadata"]["name"] == "tipserve-publish"
        assert values == ([MISTAKE, REFUSED] if is_gate else [MISTAKE])


@every_container
def test_the_command_line_accepts_every_argument(name: str, part: str) -> None:
    _, container = pod_and_container(name, part)
    named = {found for word in container["args"] for found in REFERENCE.findall(word)}
    own = {variable["name"] for variable in container.get("env", ())}
    assert {"SIZE", "STEPS", "BATCH"} & own <= named <= values_of(name, container).keys()
    for program, *words in commands_of(name, container):
        if program != "ln":
            assert program == "torchrun" or words[0] == "-P"
            module, *arguments = words[words.index("-m") + 1 :]
            parse = new_app().parse_args if module == "model" else build_parser().parse_args
            parse(arguments)


@every_container
def test_every_path_is_on_a_volume_with_the_needed_rights(name: str, part: str) -> None:
    pod, container = pod_and_container(name, part)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for word in (word for words in commands_of(name, container) for word in words):
        for path in PATH.findall(word):
            (mount,) = [found for place, found in mounts.items() if path.startswith(place)]
            is_written = word.partition("=")[0] in OUTPUTS
            assert not (is_written and mount.get("readOnly")), word
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
    # The root is read-only, and torch and Python write temporary files.
    assert "/tmp" in mounts
    values = values_of(name, container)
    assert values["HOME"] == "/tmp"
    if container["command"] == ["torchrun"]:
        shared = mounts["/dev/shm"]["name"]
        assert {"Memory"} == {
            v["emptyDir"]["medium"] for v in pod["volumes"] if v["name"] == shared
        }
        timeout_s = int(values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        assert 60 <= timeout_s < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", CHAINS)
def test_a_pod_that_holds_a_gpu_has_no_step_without_one(name: str) -> None:
    """A pod holds the most that any of its containers requests, as long as it lives."""
    holders = []
    for one in workloads(build(name)):
        idle = {c["name"] for c in one.containers if GPU not in c["resources"]["limits"]}
        if len(idle) < len(one.containers):
            # A link is made in a moment.
            assert idle <= {"hand-over"}
            holders += [taint["key"] for taint in one.pod["tolerations"]]
    assert holders == ([] if name == "chain-dev" else [GPU])


@pytest.mark.parametrize("name", ["chain", "trainjob", "indexed-job"])
def test_every_job_is_queued_with_kueue_and_gpus_are_of_one_pool(name: str) -> None:
    components = [FOLDER / "components" / part for part in ("kueue", "gpu-pool")]
    text = build_together(FOLDER / name, components)
    for one in workloads(yaml.safe_load_all(text)):
        job = one.document["spec"].get("jobTemplate", one.document)
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
        has_gpu = any(GPU in container["resources"]["limits"] for container in one.containers)
        assert ("nodeSelector" in one.pod) == has_gpu


def test_a_monitored_distillation_serves_the_series_that_are_scraped() -> None:
    documents = build("components/monitoring")
    (step,) = [one for one in chain_steps(documents) if one["name"] == "distill"]
    assert step["ports"] == [{"name": "metrics", "containerPort": METRICS_PORT}]
    words = [expand(word, environment(step, documents, LABELS)) for word in step["args"]]
    options = build_parser().parse_args(words[words.index("training") + 1 :])
    assert options.overrides == ["log_to=tensorboard,prometheus"]


@every_kind
@pytest.mark.parametrize("suffix", ["", "-dev"])
def test_the_same_runs_with_and_without_an_operator(kind: str, suffix: str) -> None:
    _, by_operator = pod_and_container(f"trainjob{suffix}", kind)
    _, alone = pod_and_container(f"indexed-job{suffix}", kind)
    own = [variable for variable in alone["env"] if not variable["name"].startswith("PET_")]
    for key, expected in {**alone, "env": own}.items():
        if key in ("command", "args", "env", "volumeMounts"):
            assert by_operator[key] == expected


@every_kind
@pytest.mark.parametrize("name", ["indexed-job", "indexed-job-dev"])
def test_pods_without_an_operator_find_one_another(name: str, kind: str) -> None:
    documents = build(name)
    job, service = (find(documents, what, f"tipserve-{kind}") for what in ("Job", "Service"))
    spec, template, balancer = job["spec"], job["spec"]["template"], service["spec"]
    values = environment(template["spec"]["containers"][0], documents, LABELS)
    assert (spec["completionMode"], spec["parallelism"]) == ("Indexed", spec["completions"])
    assert int(values["PET_NNODES"]) == spec["completions"]
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert values["PET_MASTER_ADDR"] == first
    assert balancer["selector"].items() <= template["metadata"]["labels"].items()
    assert (balancer["clusterIP"], balancer["publishNotReadyAddresses"]) == ("None", True)
    assert values["PET_MASTER_PORT"] == str(balancer["ports"][0]["port"])


@every_kind
@pytest.mark.parametrize("name", ["trainjob", "indexed-job"])
def test_there_is_a_gpu_for_every_process_whose_taint_is_tolerated(name: str, kind: str) -> None:
    pod, container = pod_and_container(name, kind)
    if name == "trainjob":
        num = find(build(name), "TrainJob", f"tipserve-{kind}")["spec"]["trainer"]["numProcPerNode"]
    else:
        num = values_of(name, container)["PET_NPROC_PER_NODE"]
    assert {container["resources"][side][GPU] for side in ("limits", "requests")} == {str(num)}
    assert [taint["key"] for taint in pod["tolerations"]] == [GPU]


def test_only_captioning_reads_geminis_key_and_may_call_out() -> None:
    _, caption = pod_and_container("chain-gemini", "caption")
    assert "--api-key-file=/secrets/gemini/api-key" in caption["args"]
    for one in workloads(build("chain-gemini")):
        is_caption = one.document["metadata"]["name"] == "tipserve-caption"
        secrets = [v["secret"] for v in one.pod["volumes"] if "secret" in v]
        allowed = [{"secretName": "tipserve-gemini", "defaultMode": 0o440}]
        assert secrets == (allowed if is_caption else [])
        assert ("tipserve/captions" in one.labels) == is_caption


def test_the_gates_rules_name_scores_of_the_bundled_model() -> None:
    scores = open_package("bundled-student", verify=False).manifest.scores
    rules = read_rules(FOLDER / "chain" / "gate.toml")
    least = [rule.model_copy(update={"max_loss": None}) for rule in rules if rule.minimum]
    assert least
    assert all(verdict.passed for verdict in judge(least, scores))
    known = {(entry.task, entry.split, entry.metric) for entry in scores}
    assert {(rule.task, rule.split, rule.metric) for rule in rules} <= known
