"""References: what pods mount, read and run as is there."""

from collections.abc import Iterator

from tests.deploy.workloads import Manifest, Workload, called, of_kind, workloads

# On a Deployment: `expects/NAME: KIND` for what the cluster brings.
EXPECTS = "expects/"


def objects(documents: list[Manifest]) -> list[str]:
    """ConfigMaps, Secrets, claims and accounts that pods name are there, with the keys."""
    found = []
    there = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for workload in workloads(documents):
        expected = {
            (kind, key.removeprefix(EXPECTS))
            for key, kind in workload.document["metadata"].get("annotations", {}).items()
            if key.startswith(EXPECTS)
        }
        for kind, name, keys, optional in _references(workload):
            target = there.get((kind, name))
            if target is None:
                if not optional and (kind, name) not in expected:
                    found.append(f"{workload}: there is no {kind} {name}")
                continue
            data = {**target.get("data", {}), **target.get("stringData", {})}
            found += [f"{workload}: {kind} {name} has no {key}" for key in keys if key not in data]
    return found


def claims_of_kserve(documents: list[Manifest]) -> list[str]:
    """The volume that an InferenceService's model lies on is there."""
    claims = {one["metadata"]["name"] for one in of_kind(documents, "PersistentVolumeClaim")}
    found = []
    for service in of_kind(documents, "InferenceService"):
        uri = service["spec"]["predictor"].get("model", {}).get("storageUri", "")
        claim = uri.removeprefix("pvc://").partition("/")[0]
        expected = service["metadata"].get("annotations", {}).get(EXPECTS + claim)
        if uri.startswith("pvc://") and claim not in claims and not expected:
            found.append(f"{called(service)}: there is no PersistentVolumeClaim {claim}")
    return found


def mounts(documents: list[Manifest]) -> list[str]:
    """Mounts have a volume, volumes a mount, and no two mounts of a container one place."""
    found = []
    for workload in workloads(documents):
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        used = set()
        for container in workload.containers:
            mounted = container.get("volumeMounts", [])
            names = {mount["name"] for mount in mounted}
            used |= names
            where = f"{workload}: {container['name']}"
            found += [f"{where} mounts {n}, which is no volume" for n in sorted(names - volumes)]
            places = [mount["mountPath"] for mount in mounted]
            if len(places) != len(set(places)):
                found.append(f"{where} mounts two volumes in one place")
        found += [f"{workload}: nobody mounts {n}" for n in sorted(volumes - used)]
    return found


def _references(workload: Workload) -> Iterator[tuple[str, str, list[str], bool]]:
    """Kind, name, keys, and whether it may be missing."""
    account = workload.pod.get("serviceAccountName")
    if account:
        yield "ServiceAccount", account, [], False
    for volume in workload.pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], [], False
        for kind, field, name in (
            ("Secret", "secret", "secretName"),
            ("ConfigMap", "configMap", "name"),
        ):
            source = volume.get(field)
            if source:
                keys = [item["key"] for item in source.get("items", [])]
                yield kind, source[name], keys, source.get("optional", False)
    for container in workload.containers:
        for source in container.get("envFrom", []):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if field in source:
                    reference = source[field]
                    yield kind, reference["name"], [], reference.get("optional", False)
        for variable in container.get("env", []):
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                reference = variable.get("valueFrom", {}).get(field)
                if reference:
                    optional = reference.get("optional", False)
                    yield kind, reference["name"], [reference["key"]], optional


def variables(container: Manifest, documents: list[Manifest]) -> dict[str, str]:
    """A container's variables as its process sees them; those from Secrets and fields are empty."""
    data = {one["metadata"]["name"]: one["data"] for one in of_kind(documents, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= data.get(source.get("configMapRef", {}).get("name"), {})
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            found[variable["name"]] = data.get(reference["name"], {}).get(reference["key"], "")
        else:
            found[variable["name"]] = variable.get("value", "")
    return found
