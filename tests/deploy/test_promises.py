"""Every kustomization keeps what is promised of all manifests."""

import pytest

from tests.deploy import kustomizations, promises


@pytest.mark.parametrize("name", kustomizations.ALL)
def test_promises_are_kept(name: str) -> None:
    assert promises.faults(kustomizations.build(name)) == []
