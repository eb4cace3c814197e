"""Manifests of retraining: order, variables, places and users fit together, in every variant."""

import re

import pytest

from model.conversion.commands import new_app
from model.manifest import Manifest as PackageManifest
from model.package import open_package
from model.publication import CURRENT
from model.scores.gate import judge, read_rules
from tests.deploy.training_steps import (
    FOLDER,
    REFERENCE,
    build,
    chain_pod,
    chain_steps,
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
ORDER = ["first", "caption", "distill", "evaluate", "gate", "export", "publish"]
PATH = re.compile(r"(?<![\w./])/[a-z][\w./()$-]*")
# Options that a step writes to.
OUTPUTS = ("--output", "--runs", "--repository")
LABELS = {
    "batch.kubernetes.io/job-name": "tipserve-retrain-1",
    "batch.kubernetes.io/job-completion-index": "0",
}
EVERY = [*((name, step) for name in CHAINS for step in ORDER)]
EVERY += [(name, kind) for name in DISTRIBUTED for kind in KINDS]
every_container = pytest.mark.parametrize(("name", "part"), EVERY)


def pod_and_container(name: str, part: str) -> tuple[Manifest, Manifest]:
    """The pod's spec and the container of a chain's step or of a distributed job."""
    documents = build(name)
    if name in CHAINS:
        (container,) = [step for step in chain_steps(documents) if step["name"] == part]
        return chain_pod(documents), container
    (pod,) = [
        one.pod
        for one in workloads(documents)
        if one.document["metadata"]["name"] == f"tipserve-{part}"
    ]
    return pod, pod["containers"][0]


def values_of(name: str, container: Manifest) -> dict[str, str]:
    return environment(container, build(name), LABELS)


def arguments_of(name: str, container: Manifest) -> list[str]:
    values = values_of(name, container)
    return [expand(word, values) for word in container["args"]]


@pytest.mark.parametrize("name", CHAINS)
def test_steps_run_in_order(name: str) -> None:
    assert [step["name"] for step in chain_steps(build(name))] == ORDER


@every_container
def test_the_command_line_accepts_every_argument(name: str, part: str) -> None:
    _, container = pod_and_container(name, part)
    command, arguments = container["command"], arguments_of(name, container)
    if command == ["torchrun"]:
        begin = arguments.index("-m")
        command, arguments = ["python", "-P", *arguments[begin : begin + 2]], arguments[begin + 2 :]
    assert command[:3] == ["python", "-P", "-m"]
    if command[3] == "model":
        new_app().parse_args(arguments)
    else:
        assert command[3] == "training"
        build_parser().parse_args(arguments)


@every_container
def test_variables_of_arguments_exist_and_sizes_are_used(name: str, part: str) -> None:
    _, container = pod_and_container(name, part)
    named = {found for word in container["args"] for found in REFERENCE.findall(word)}
    assert named <= values_of(name, container).keys()
    own = {variable["name"] for variable in container.get("env", ())}
    assert {"SIZE", "STEPS", "BATCH"} & own <= named


@pytest.mark.parametrize("name", CHAINS)
def test_every_size_of_the_chain_is_used(name: str) -> None:
    documents = build(name)
    words = [word for step in chain_steps(documents) for word in step["args"]]
    named = {found for word in words for found in REFERENCE.findall(word)} - {"RUN"}
    unused = find(documents, "ConfigMap", "tipserve-retrain")["data"].keys() - named
    assert unused <= ({"CAPTION_BATCH"} if name == "chain-gemini" else set())


@every_container
def test_every_path_is_on_a_volume_with_the_needed_rights(name: str, part: str) -> None:
    pod, container = pod_and_container(name, part)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for word in arguments_of(name, container):
        for path in PATH.findall(word):
            (mount,) = [found for place, found in mounts.items() if path.startswith(place)]
            is_written = word.partition("=")[0] in OUTPUTS
            assert not (is_written and mount.get("readOnly")), word
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
    # The root is read-only, and torch and Python write temporary files.
    assert "/tmp" in mounts
    assert values_of(name, container)["HOME"] == "/tmp"


@every_container
def test_a_stop_leaves_time_to_save(name: str, part: str) -> None:
    pod, container = pod_and_container(name, part)
    timeout_s = int(values_of(name, container)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 60 <= timeout_s < pod["terminationGracePeriodSeconds"]


@every_container
def test_data_loaders_have_shared_memory(name: str, part: str) -> None:
    pod, container = pod_and_container(name, part)
    if container["command"] == ["torchrun"]:
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (volume,) = [one for one in pod["volumes"] if one["name"] == mounts["/dev/shm"]]
        assert volume["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("name", CHAINS)
def test_the_gate_ends_the_job_and_an_eviction_does_not(name: str) -> None:
    spec = find(build(name), "CronJob", "tipserve-retrain")["spec"]
    job = spec["jobTemplate"]["spec"]
    evicted, refused, mistaken = job["podFailurePolicy"]["rules"]
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == (
        "Ignore",
        "DisruptionTarget",
    )
    gate = {"containerName": "gate", "operator": "In", "values": [REFUSED]}
    assert refused == {"action": "FailJob", "onExitCodes": gate}
    mistake = {"operator": "In", "values": [MISTAKE]}
    assert mistaken == {"action": "FailJob", "onExitCodes": mistake}
    # Rules for exit codes, and the order of restarted steps, require this policy.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["concurrencyPolicy"] == "Forbid"


def test_a_student_is_compared_with_the_published_version() -> None:
    (evaluate,) = [one for one in chain_steps(build("chain")) if one["name"] == "evaluate"]
    assert f"--served=/models/{CURRENT}" in evaluate["args"]


def test_a_chain_that_hangs_ends_before_the_next_week() -> None:
    job = find(build("chain"), "CronJob", "tipserve-retrain")["spec"]["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] < 7 * 86400


def test_pods_with_gpus_tolerate_their_taint() -> None:
    for name in ("chain", "trainjob", "indexed-job"):
        for one in workloads(build(name)):
            assert [t["key"] for t in one.pod["tolerations"]] == ["nvidia.com/gpu"]


def test_every_job_is_queued_with_kueue() -> None:
    job = find(build("components/kueue"), "CronJob", "tipserve-retrain")["spec"]["jobTemplate"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"


def test_a_monitored_distillation_serves_the_series_that_are_scraped() -> None:
    documents = build("components/monitoring")
    (step,) = [one for one in chain_steps(documents) if one["name"] == "distill"]
    assert step["ports"] == [{"name": "metrics", "containerPort": METRICS_PORT}]
    words = [expand(word, environment(step, documents, LABELS)) for word in step["args"]]
    options = build_parser().parse_args(words[words.index("training") + 1 :])
    assert options.overrides == ["log_to=tensorboard,prometheus"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", "-dev"])
def test_the_same_runs_with_and_without_an_operator(kind: str, suffix: str) -> None:
    _, by_operator = pod_and_container(f"trainjob{suffix}", kind)
    _, alone = pod_and_container(f"indexed-job{suffix}", kind)
    own = [variable for variable in alone["env"] if not variable["name"].startswith("PET_")]
    for key, expected in {**alone, "env": own}.items():
        if key in ("command", "args", "env", "volumeMounts"):
            assert by_operator[key] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["indexed-job", "indexed-job-dev"])
def test_pods_without_an_operator_find_one_another(name: str, kind: str) -> None:
    documents = build(name)
    job, service = (find(documents, what, f"tipserve-{kind}") for what in ("Job", "Service"))
    spec, template = job["spec"], job["spec"]["template"]
    values = environment(template["spec"]["containers"][0], documents, LABELS)
    assert (spec["completionMode"], spec["parallelism"]) == ("Indexed", spec["completions"])
    assert int(values["PET_NNODES"]) == spec["completions"]
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert values["PET_MASTER_ADDR"] == first
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    found = (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"])
    assert found == ("None", True)
    assert values["PET_MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])


@pytest.mark.parametrize("name", ["trainjob", "indexed-job"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_gpu_for_every_process(name: str, kind: str) -> None:
    _, container = pod_and_container(name, kind)
    if name == "trainjob":
        num = find(build(name), "TrainJob", f"tipserve-{kind}")["spec"]["trainer"]["numProcPerNode"]
    else:
        num = values_of(name, container)["PET_NPROC_PER_NODE"]
    for side in ("limits", "requests"):
        assert container["resources"][side]["nvidia.com/gpu"] == str(num)


def test_only_captioning_reads_geminis_key_and_may_call_out() -> None:
    documents = build("chain-gemini")
    _, caption = pod_and_container("chain-gemini", "caption")
    assert "--api-key-file=/secrets/gemini/api-key" in arguments_of("chain-gemini", caption)
    (volume,) = [v for v in chain_pod(documents)["volumes"] if v["name"] == "gemini"]
    assert volume["secret"] == {"secretName": "tipserve-gemini", "defaultMode": 0o440}
    holders = [
        step["name"]
        for step in chain_steps(documents)
        if any(mount["name"] == "gemini" for mount in step["volumeMounts"])
    ]
    assert holders == ["caption"]
    (chain,) = workloads(build("chain"))
    assert "tipserve/captions" not in chain.labels


def test_the_gates_rules_name_scores_of_the_bundled_model() -> None:
    bundled: PackageManifest = open_package("bundled-student", verify=False).manifest
    rules = read_rules(FOLDER / "chain" / "gate.toml")
    least = [rule.model_copy(update={"max_loss": None}) for rule in rules if rule.minimum]
    assert least
    assert all(verdict.passed for verdict in judge(least, bundled.scores))
    known = {(entry.task, entry.split, entry.metric) for entry in bundled.scores}
    assert {(rule.task, rule.split, rule.metric) for rule in rules} <= known
