"""The Helm chart: what its values do, and what they must not do."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy import cross_references
from tests.deploy.kustomizations import CHART, EVERYTHING, build, render
from tests.deploy.workloads import Manifest, called, of_kind, workloads
from tests.tools import run


def documents_of(values: dict[str, Any], release: str = "tipserve") -> list[Manifest]:
    return [one for one in yaml.load_all(render(values, release), yaml.CSafeLoader) if one]


def server(documents: list[Manifest]) -> Manifest:
    (found,) = [one.pod for one in workloads(documents) if one.servers]
    return found


def settings(documents: list[Manifest]) -> dict[str, str]:
    found = {one["metadata"]["name"]: one["data"] for one in of_kind(documents, "ConfigMap")}
    return dict(found[server(documents)["containers"][0]["envFrom"][0]["configMapRef"]["name"]])


def test_every_value_reaches_the_objects() -> None:
    given: list[Any] = []

    def other(default: Any, name: str) -> Any:
        if isinstance(default, bool):
            return True
        if isinstance(default, dict) and default:
            return {key: other(value, f"{name}-{key.lower()}") for key, value in default.items()}
        is_number = isinstance(default, int | float)
        given.append(70_000 + len(given) if is_number else f"other{name}")
        wrapped: dict[type, Any] = {dict: {"a": given[-1]}, list: [given[-1]]}
        return wrapped.get(type(default), given[-1])

    values = other(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), "")
    values["tolerations"] = [{"key": values["tolerations"][0]}]
    # The probe asks every two seconds.
    given[given.index(values["startupSeconds"])] = values["startupSeconds"] // 2
    # KEDA takes the place of `replicas`, and an existing claim that of a new one.
    less = {"keda": {}, "modelVolume": {"enabled": True, "claim": "", "storage": "otherstorage"}}
    storage = [name for name in given if str(name).endswith("volume-storage")]
    unchecked = "--skip-schema-validation"
    text = render(values, "tipserve", [], unchecked)
    text += render(values | less, "tipserve", [], unchecked)
    assert "otherstorage" in text
    assert [one for one in given if str(one) not in text] == storage


def test_another_release_shares_nothing_with_the_first() -> None:
    values = EVERYTHING | {"ingress": {}}
    first, second = (documents_of(values, name) for name in ("a-tipserve", "tipserve-b"))
    names = [{called(one) for one in documents} for documents in (first, second)]
    assert not names[0] & names[1]
    assert cross_references.faults([*first, *second]) == []


def test_a_changed_setting_causes_a_rollout_but_changed_keys_do_not() -> None:
    templates = []
    for level in ("INFO", "DEBUG"):
        documents = documents_of({"settings": {"TIPSERVE_LOG_LEVEL": level}})
        templates.append(yaml.safe_dump(server(documents)))
        assert settings(documents)["TIPSERVE_MODEL"] == "bundled"
    assert templates[0] != templates[1]
    # The server reads keys from a file of a Secret that is no part of the chart.
    keyed = documents_of({"apiKeys": {"enabled": True, "secret": "ours"}})
    assert of_kind(keyed, "Secret") == []
    (volume,) = [one for one in server(keyed)["volumes"] if one["name"] == "api-keys"]
    assert volume["secret"]["secretName"] == "ours"


def test_numbers_among_the_settings_stay_as_they_are() -> None:
    given = {"TIPSERVE_MAX_BODY_MEMORY_BYTES": 268435456, "TIPSERVE_ACCESS_LOG_RATIO": 0.1}
    chosen = settings(documents_of({"settings": given}))
    assert {name: chosen[name] for name in given} == {n: str(v) for n, v in given.items()}


def test_a_changed_file_of_the_proxy_causes_a_rollout() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in (CHART / "proxy").iterdir()}
    documents = build("cpu")
    (found,) = [one for one in of_kind(documents, "ConfigMap") if "start.sh" in one["data"]]
    assert found["data"] == files
    (volume,) = [one for one in server(documents)["volumes"] if one["name"] == "front"]
    assert re.fullmatch("tipserve-front-[0-9a-f]{10}", volume["configMap"]["name"])


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        # Publishing and each server verify a package; a third time in between adds nothing.
        ("production", ["front"]),
        ("dev", []),
        ("released", ["prepare-model", "front"]),
        ("gpu", ["build-engines", "front"]),
        ("gpu-released", ["prepare-model", "build-engines", "front"]),
    ],
)
def test_init_containers_run_in_order_and_do_what_the_server_needs(
    name: str, steps: list[str]
) -> None:
    documents = build(name)
    pod = server(documents)
    containers = pod.get("initContainers", [])
    assert [container["name"] for container in containers] == steps
    precisions = settings(documents).get("TIPSERVE_CONVERT_PRECISIONS", "")
    for container in containers[: -1 if steps else None]:
        # Each handles the model that is then served, in the server's cache and precisions.
        assert container["envFrom"] == pod["containers"][0]["envFrom"]
        assert container["command"][-1] == "$(TIPSERVE_MODEL)"
        given = re.findall(r"--precision=(\w+)", " ".join(container["command"]))
        assert given == [name for name in precisions.split(",") if name]


def test_engines_are_built_on_the_servers_part_of_a_gpu() -> None:
    text = render({"gpu": "nvidia.com/mig-2g.20gb"}, "tipserve", ["gpu"])
    pod = server([one for one in yaml.load_all(text, yaml.CSafeLoader) if one])
    for container in (pod["initContainers"][0], pod["containers"][0]):
        limits = container["resources"]["limits"]
        assert {name for name in limits if "/" in name} == {"nvidia.com/mig-2g.20gb"}, container[
            "name"
        ]


def test_openshift_chooses_the_user() -> None:
    context = server(documents_of({"user": None}))["securityContext"]
    assert context.keys() == {"runAsNonRoot", "seccompProfile"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("keda.enabled=true", "keda.enabled needs monitoring.enabled"),
        ("tls.enabled=true,front.enabled=false", "tls.enabled needs front.enabled"),
        (
            "monitoring.enabled=true,keda.enabled=true,keda.minReplicas=11",
            "keda.minReplicas is above keda.maxReplicas",
        ),
        ("replica=3", "'replica' not allowed"),
        ("front.enable=false", "'enable' not allowed"),
        ("settings.MODEL=bundled", "'MODEL' not allowed"),
        ("rollingUpdate.maxUnavailable=100%", "/rollingUpdate/maxUnavailable"),
        ("keda.queueWaitS=50", "/keda/queueWaitS"),
        ("startupSeconds=18", "/startupSeconds"),
        ("resources.limits.memory=null", "missing property 'memory'"),
    ],
)
def test_values_without_sense_are_refused(values: str, told: str) -> None:
    ended = run("helm", "template", "tipserve", CHART, f"--set={values}")
    assert ended.returncode != 0
    assert told in ended.stderr
