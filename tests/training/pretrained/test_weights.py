"""Weights of other packages are used with their known digest only."""

import pytest

from training.pretrained import weights
from training.pretrained.weights import FILES, weights_file


@pytest.mark.parametrize("package", FILES)
def test_the_installed_weights_have_their_digest(package: str) -> None:
    assert weights_file(package).stat().st_size > 10_000_000


def test_other_weights_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"numpy": ("__init__.py", "0" * 64), "no_such_package": ("a", "0" * 64)}
    monkeypatch.setattr(weights, "FILES", changed)
    with pytest.raises(ValueError, match="reinstall numpy"):
        weights_file("numpy")
    with pytest.raises(FileNotFoundError, match="no_such_package is missing"):
        weights_file("no_such_package")
