"""Manifests of retraining: order, variables, places and users fit together, in every variant."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from model.conversion.commands import parse_options
from model.manifest import Manifest as PackageManifest
from model.package import open_package
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
from training.__main__ import MISTAKE, REFUSED, build_parser
from training.evaluate.gate import judge, read_rules

Manifest = dict[str, Any]

CHAINS = ("chain", "chain-gemini", "chain-dev")
DISTRIBUTED = ("trainjob", "trainjob-dev", "indexed-job", "indexed-job-dev")
KINDS = ("pretrain", "distill")
ORDER = ["first", "caption", "distill", "evaluate", "gate", "export", "publish"]
PATH = re.compile(r"(?<![\w./])/[a-z][\w./()$-]*")
# Which of a step's options are written to.
OUTPUTS = ("--output", "--runs", "--repository")
LABELS = {
    "batch.kubernetes.io/job-name": "tipserve-retrain-1",
    "batch.kubernetes.io/job-completion-index": "0",
}


def job_of(documents: list[Manifest]) -> Manifest:
    spec = find(documents, "CronJob", "tipserve-retrain")["spec"]["jobTemplate"]["spec"]
    assert isinstance(spec, dict)
    return spec


def pod_and_container(name: str, kind: str) -> tuple[Manifest, Manifest]:
    """The pod's spec and its container; of a TrainJob as its patches leave the runtime's."""
    documents = build(name)
    if name.startswith("indexed"):
        pod = find(documents, "Job", f"tipserve-{kind}")["spec"]["template"]["spec"]
        return pod, pod["containers"][0]
    spec = find(documents, "TrainJob", f"tipserve-{kind}")["spec"]
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (patched,) = pod["containers"]
    assert (replicated["name"], patched["name"]) == ("node", "node")
    trainer = spec["trainer"]
    return pod, {**patched, **trainer, "resources": trainer["resourcesPerNode"]}


def every_container() -> Iterator[tuple[str, Manifest, Manifest, list[Manifest]]]:
    """Name, pod, container and documents, of chains and of distributed jobs."""
    for name in CHAINS:
        documents = build(name)
        for step in chain_steps(documents):
            yield f"{name}/{step['name']}", chain_pod(documents), step, documents
    for name in DISTRIBUTED:
        for kind in KINDS:
            yield f"{name}/{kind}", *pod_and_container(name, kind), build(name)


def arguments_of(container: Manifest, documents: list[Manifest]) -> list[str]:
    values = environment(container, documents, LABELS)
    return [expand(word, values) for word in container["args"]]


@pytest.mark.parametrize("name", CHAINS)
def test_steps_come_in_their_order(name: str) -> None:
    steps = chain_steps(build(name))
    assert [step["name"] for step in steps] == ORDER
    assert {step["image"] for step in steps} == {"tipserve:0.1.0-train"}


@pytest.mark.parametrize("name", [*CHAINS, *DISTRIBUTED])
def test_the_command_line_takes_every_argument(name: str) -> None:
    for title, _, container, documents in every_container():
        if title.partition("/")[0] != name:
            continue
        arguments = arguments_of(container, documents)
        if container["command"] == ["python", "-P", "-m", "model"]:
            parse_options(arguments)
            continue
        if container["command"] == ["torchrun"]:
            begin = arguments.index("-m")
            assert arguments[begin + 1] == "training"
            arguments = arguments[begin + 2 :]
        else:
            assert container["command"] == ["python", "-P", "-m", "training"]
        build_parser().parse_args(arguments)


def test_every_variable_that_is_named_is_given() -> None:
    for title, _, container, documents in every_container():
        given = environment(container, documents, LABELS)
        named = {name for word in container["args"] for name in REFERENCE.findall(word)}
        assert named <= given.keys(), title
        # What is set and never used is a size that changes nothing.
        own = {variable["name"] for variable in container.get("env", ())}
        assert {"SIZE", "STEPS", "BATCH"} & own <= named, title


def test_every_size_of_the_chain_is_used() -> None:
    for name in CHAINS:
        documents = build(name)
        settings = find(documents, "ConfigMap", "tipserve-retrain")["data"]
        words = [word for step in chain_steps(documents) for word in step["args"]]
        named = {found for word in words for found in REFERENCE.findall(word)} - {"RUN"}
        assert named <= settings.keys()
        unused = settings.keys() - named
        assert unused <= ({"CAPTION_BATCH"} if name == "chain-gemini" else set())


def test_every_path_lies_on_a_volume_that_may_be_used_so() -> None:
    for title, pod, container, documents in every_container():
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= volumes, title
        for word in arguments_of(container, documents):
            for path in PATH.findall(word):
                mount = next((m for place, m in mounts.items() if path.startswith(place)), None)
                assert mount is not None, (title, word)
                is_written = word.partition("=")[0] in OUTPUTS
                assert not (is_written and mount.get("readOnly")), (title, word)
        # The root is read-only, and torch and Python want a place for files that they throw away.
        assert "/tmp" in mounts, title
        assert environment(container, documents, LABELS)["HOME"] == "/tmp"


def test_pods_have_no_rights_that_they_do_not_need() -> None:
    for title, pod, container, _ in every_container():
        user = pod["securityContext"]
        assert user["runAsNonRoot"] is True, title
        assert (user["runAsUser"], user["fsGroup"]) == (10001, 10001), title
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}, title
        hardened = container["securityContext"]
        assert hardened["readOnlyRootFilesystem"] is True, title
        assert hardened["allowPrivilegeEscalation"] is False, title
        assert hardened["capabilities"] == {"drop": ["ALL"]}, title
        # The Trainer's patches cannot say so; its runtime's pods keep the default account.
        if not title.startswith("trainjob"):
            assert pod["automountServiceAccountToken"] is False, title
        assert "memory" in container["resources"]["limits"], title


def test_a_stop_leaves_time_to_save() -> None:
    for title, pod, container, documents in every_container():
        values = environment(container, documents, LABELS)
        waits_s = int(values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        assert 60 <= waits_s < pod["terminationGracePeriodSeconds"], title


def test_loaders_have_shared_memory_within_the_limit() -> None:
    for title, pod, container, _ in every_container():
        if container["command"] != ["torchrun"]:
            continue
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (volume,) = [v for v in pod["volumes"] if v["name"] == mounts["/dev/shm"]]
        assert volume["emptyDir"]["medium"] == "Memory", title


@pytest.mark.parametrize("name", CHAINS)
def test_the_gate_ends_the_job_and_an_eviction_does_not(name: str) -> None:
    job = job_of(build(name))
    rules = job["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "FailJob"]
    assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert rules[1]["onExitCodes"] == {
        "containerName": "gate",
        "operator": "In",
        "values": [REFUSED],
    }
    assert rules[2]["onExitCodes"] == {"operator": "In", "values": [MISTAKE]}
    # A policy may look at exit codes only with this, and steps restart in their order only with
    # this.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    cron = find(build(name), "CronJob", "tipserve-retrain")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


def test_steps_hand_on_what_the_next_one_reads() -> None:
    documents = build("chain")
    said = {s["name"]: " ".join(arguments_of(s, documents)) for s in chain_steps(documents)}
    run = "/runs/tipserve-retrain-1"
    assert "--output=/data/captioned" in said["caption"]
    assert "--images=/data/captioned" in said["distill"]
    assert "--runs=/runs --name=tipserve-retrain-1" in said["distill"]
    assert f"evaluate {run} --served=/models/current" in said["evaluate"]
    assert f"--output={run}/scored" in said["evaluate"]
    assert f"gate {run}/scored" in said["gate"]
    assert f"--checkpoint={run}/scored --output={run}/package" in said["export"]
    assert f"publish {run}/package --repository=/models" in said["publish"]
    assert "--repository=/models --if-empty" in said["first"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", "-dev"])
def test_with_and_without_an_operator_the_same_is_run(kind: str, suffix: str) -> None:
    by_operator = pod_and_container(f"trainjob{suffix}", kind)[1]
    alone = pod_and_container(f"indexed-job{suffix}", kind)[1]
    assert by_operator["command"] == alone["command"]
    assert by_operator["args"] == alone["args"]
    assert by_operator["volumeMounts"] == alone["volumeMounts"]
    own = [variable for variable in alone["env"] if not variable["name"].startswith("PET_")]
    assert by_operator["env"] == own


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
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == (
        "None",
        True,
    )
    assert values["PET_MASTER_PORT"] == str(service["spec"]["ports"][0]["port"])


@pytest.mark.parametrize("name", ["trainjob", "indexed-job"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_gpu_for_every_process(name: str, kind: str) -> None:
    container = pod_and_container(name, kind)[1]
    num = container.get("numProcPerNode") or int(
        environment(container, build(name), LABELS)["PET_NPROC_PER_NODE"]
    )
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(num)
    assert container["resources"]["requests"]["nvidia.com/gpu"] == str(num)


@pytest.mark.parametrize("name", [*CHAINS, *DISTRIBUTED])
def test_the_network_policy_is_about_these_pods(name: str) -> None:
    documents = build(name)
    policy = find(documents, "NetworkPolicy", "tipserve-training")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for title, pod_labels in labels_of(name, documents):
        assert selected.items() <= pod_labels.items(), title


def labels_of(name: str, documents: list[Manifest]) -> Iterator[tuple[str, dict[str, str]]]:
    if name in CHAINS:
        yield name, job_of(documents)["template"]["metadata"]["labels"]
        return
    for kind in KINDS:
        if name.startswith("indexed"):
            template = find(documents, "Job", f"tipserve-{kind}")["spec"]["template"]
        else:
            (patch,) = find(documents, "TrainJob", f"tipserve-{kind}")["spec"]["runtimePatches"]
            (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
            template = job["template"]["spec"]["template"]
        yield f"{name}/{kind}", template["metadata"]["labels"]


def test_geminis_key_is_a_file_that_its_policy_and_its_volume_allow_for() -> None:
    documents = build("chain-gemini")
    caption = next(step for step in chain_steps(documents) if step["name"] == "caption")
    arguments = arguments_of(caption, documents)
    assert "--api-key-file=/secrets/gemini/api-key" in arguments
    (volume,) = [v for v in chain_pod(documents)["volumes"] if v["name"] == "gemini"]
    assert volume["secret"] == {"secretName": "tipserve-gemini", "defaultMode": 0o440}
    holders = [
        step["name"]
        for step in chain_steps(documents)
        if any(mount["name"] == "gemini" for mount in step["volumeMounts"])
    ]
    assert holders == ["caption"]
    policy = find(documents, "NetworkPolicy", "tipserve-training-gemini")
    labels = job_of(documents)["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert "tipserve/captions" not in job_of(build("chain"))["template"]["metadata"]["labels"]


def test_the_gates_rules_are_about_scores_that_there_are() -> None:
    bundled: PackageManifest = open_package("bundled", verify=False).manifest
    rules = read_rules(FOLDER / "chain" / "gate.toml")
    least = [rule.model_copy(update={"max_loss": None}) for rule in rules if rule.minimum]
    assert least
    assert all(verdict.passed for verdict in judge(least, bundled.scores))
    known = {(entry.task, entry.split, entry.metric) for entry in bundled.scores}
    assert {(rule.task, rule.split, rule.metric) for rule in rules} <= known


def test_the_card_is_there() -> None:
    files = find(build("chain"), "ConfigMap", "tipserve-retrain-files")["data"]
    assert set(files) == {"gate.toml", "card.md"}
    assert files["card.md"].startswith("---\nlicense: ")
