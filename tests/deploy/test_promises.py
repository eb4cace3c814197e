"""Every kustomization keeps what is promised of all manifests, and agrees with itself."""

import pytest

from tests.deploy import cross_references, kustomizations, promises

# What one lacks by design: how the sentence begins.
MEANT = {
    # Others bring the pods.
    "training/common": "NetworkPolicy/tipserve-training: selects no pod",
}


@pytest.mark.parametrize("name", kustomizations.NAMES)
def test_promises_are_kept(name: str) -> None:
    assert promises.faults(kustomizations.build(name)) == []


@pytest.mark.parametrize("name", kustomizations.NAMES)
def test_names_and_numbers_agree(name: str) -> None:
    found = cross_references.faults(kustomizations.build(name))
    meant = [fault for fault in found if name in MEANT and fault.startswith(MEANT[name])]
    assert [fault for fault in found if fault not in meant] == []
    assert bool(meant) == (name in MEANT)
