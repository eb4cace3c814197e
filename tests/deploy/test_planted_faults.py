"""Faults planted into copies of the manifests turn red what must notice them, and nothing else."""

from collections.abc import Callable

import pytest

from tests.deploy import (
    cross_references,
    custom_resources,
    hardening,
    kustomizations,
    planted_disagreements,
    planted_faults,
    promises,
    strict_schemas,
)
from tests.deploy.planting import Planted
from tests.deploy.workloads import Manifest, of_kind

FAULTS = [*planted_faults.FAULTS, *planted_disagreements.FAULTS]
BY_COMPARISON = {planted_faults.AGREEMENT: cross_references, planted_faults.PROMISES: promises}
COMPARISONS = [check for module in BY_COMPARISON.values() for check in module.CHECKS]

Copies = dict[str, list[Manifest]]
# What a validator, or one comparison of several, says of each copy.
Verdicts = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def copies() -> Copies:
    """What each fault makes of its kustomization, beside the kustomizations as they are."""
    found = {name: kustomizations.build(name) for name in {fault.where for fault in FAULTS}}
    for fault in FAULTS:
        found[str(fault)] = kustomizations.build(fault.where)
        fault.change(found[str(fault)])
    return found


@pytest.fixture(scope="module")
def verdicts(copies: Copies, tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """What is said of each copy, by validators that know one document at a time and checkov."""
    newest = strict_schemas.VERSIONS[-1:]
    return {
        planted_faults.SCHEMAS: {
            name: strict_schemas.faults(documents, newest) for name, documents in copies.items()
        },
        planted_faults.CUSTOM: custom_resources.faults(copies),
        planted_faults.CHECKOV: hardening.faults(
            {name: _changed(copies, name) for name in copies}, tmp_path_factory.mktemp("checkov")
        ),
    }


@pytest.fixture(scope="module")
def comparisons(copies: Copies, verdicts: Verdicts) -> Verdicts:
    """What each comparison says of each copy."""
    broken = {
        name
        for validator in (planted_faults.SCHEMAS, planted_faults.CUSTOM)
        for name, said in verdicts[validator].items()
        if said
    }
    return {
        check.__qualname__: {
            name: _compared(check, documents, may_break=name in broken)
            for name, documents in copies.items()
        }
        for check in COMPARISONS
    }


def _compared(
    check: Callable[[list[Manifest]], object], documents: list[Manifest], *, may_break: bool
) -> list[str]:
    """Comparisons take it that documents have the shape that schemas demand."""
    try:
        said = check(documents)
        assert hasattr(said, "__iter__")
        return list(said)
    except (AttributeError, KeyError, TypeError):
        if not may_break:
            raise
        return []


def _changed(copies: Copies, name: str) -> list[Manifest]:
    """What a fault changed, with what belongs to it: checkov takes its time over each document."""
    original = copies[name.partition(":")[0]]
    documents = copies[name]
    if len(documents) < len(original) or name == name.partition(":")[0]:
        return documents
    changed = [one for one in documents if one not in original]
    companions = of_kind(documents, "NetworkPolicy", "ServingRuntime", "InferenceService")
    return changed + [one for one in companions if one not in changed]


def new_sentences(said: dict[str, list[str]], fault: Planted) -> set[str]:
    return set(said[str(fault)]) - set(said[fault.where])


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_found_by_whom_it_concerns(
    verdicts: Verdicts, comparisons: Verdicts, fault: Planted
) -> None:
    red = {name: new_sentences(said, fault) for name, said in verdicts.items()}
    for name, module in BY_COMPARISON.items():
        said = [comparisons[check.__qualname__] for check in module.CHECKS]
        red[name] = {one for answers in said for one in new_sentences(answers, fault)}
    assert {name for name, sentences in red.items() if sentences} == fault.by, red


@pytest.mark.parametrize("check", [check.__qualname__ for check in COMPARISONS])
def test_every_comparison_can_fail(comparisons: Verdicts, check: str) -> None:
    is_found = any(new_sentences(comparisons[check], fault) for fault in FAULTS)
    assert is_found, "plant a fault for it in planted_disagreements.py or planted_faults.py"


def test_no_two_faults_have_one_name() -> None:
    assert len({str(fault) for fault in FAULTS}) == len(FAULTS)
