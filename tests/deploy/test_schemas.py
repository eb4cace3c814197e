"""Every kustomization, and what users will combine, against the schemas of all their kinds."""

import pytest

from tests.deploy import custom_resources, kustomizations, strict_schemas
from tests.deploy.kustomizations import ALL


@pytest.mark.parametrize("name", ALL)
def test_builtin_kinds_fit_the_strict_schemas(name: str) -> None:
    documents = kustomizations.build(name)
    assert documents
    assert strict_schemas.faults(documents) == []


@pytest.fixture(scope="module")
def faults_by_name() -> dict[str, list[str]]:
    """What is wrong with the custom resources of each kustomization."""
    return custom_resources.faults({name: kustomizations.build(name) for name in ALL})


@pytest.mark.parametrize("name", ALL)
def test_custom_resources_fit_their_descriptions(
    faults_by_name: dict[str, list[str]], name: str
) -> None:
    assert faults_by_name[name] == []
