"""Manifests of retraining: order, variables, places and users fit together, in every variant."""

import pytest

from model.conversion.commands import new_app
from model.publication import CURRENT
from tests.deploy.training_steps import (
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

CHAINS = ("chain", "chain-gemini", "chain-dev")
DISTRIBUTED = ("trainjob", "trainjob-dev", "indexed-job", "indexed-job-dev")
KINDS = ("pretrain", "distill")
ORDER = ["caption", "distill", "hand-over", "publish"]
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
            if module == "model":
                new_app().parse_args(arguments)
            else:
                build_parser(arguments[0]).parse_args(arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", "-dev"])
def test_the_same_runs_with_and_without_an_operator(kind: str, suffix: str) -> None:
    _, by_operator = pod_and_container(f"trainjob{suffix}", kind)
    _, alone = pod_and_container(f"indexed-job{suffix}", kind)
    alone["env"] = [one for one in alone["env"] if not one["name"].startswith("PET_")]
    for key in ("command", "args", "env", "volumeMounts"):
        assert by_operator.get(key) == alone.get(key), key


def test_only_captioning_reads_geminis_key_and_may_call_out() -> None:
    _, caption = pod_and_container("chain-gemini", "caption")
    assert "--api-key-file=/secrets/gemini/api-key" in caption["args"]
    for one in workloads(build("chain-gemini")):
        is_caption = one.document["metadata"]["name"] == "tipserve-caption"
        secrets = [v["secret"] for v in one.pod["volumes"] if "secret" in v]
        allowed = [{"secretName": "tipserve-gemini", "defaultMode": 0o440}]
        assert secrets == (allowed if is_caption else [])
        assert ("tipserve/captions" in one.labels) == is_caption
