"""Every kustomization against the schemas of Kubernetes and of the operators."""

import pytest

from tests.deploy import custom_resources, kustomizations, strict_schemas


@pytest.mark.parametrize("name", kustomizations.NAMES)
def test_builtin_kinds_fit_the_strict_schemas(name: str) -> None:
    documents = kustomizations.build(name)
    assert documents
    assert strict_schemas.faults(documents) == []


@pytest.mark.parametrize("name", kustomizations.NAMES)
def test_custom_resources_fit_their_descriptions(name: str) -> None:
    assert custom_resources.faults(kustomizations.build(name)) == []
