"""Ways to plant a fault into a copy of the manifests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.deploy.workloads import Manifest

Change = Callable[[list[Manifest]], None]


@dataclass(frozen=True)
class Planted:
    """One fault.

    Attributes:
        what: In a few words.
        where: The kustomization whose copy gets it.
        by: The validators that must find it, and no others.
        change: Plants it.
    """

    what: str
    where: str
    by: frozenset[str]
    change: Change

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def planted(where: str, by: str | tuple[str, ...], changes: dict[str, Change]) -> list[Planted]:
    """Several faults in copies of one kustomization, which the same validators must find."""
    names = frozenset([by] if isinstance(by, str) else by)
    return [Planted(what, where, names, change) for what, change in changes.items()]


def put(value: Any, *path: str | int) -> Change:
    """Sets a field; a path begins with a kind, or with kind/name."""

    def change(documents: list[Manifest]) -> None:
        owner = _owner(documents, path)
        owner[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    """Removes a field or an item, or with a kind alone the whole document."""

    def change(documents: list[Manifest]) -> None:
        if len(path) == 1:
            documents.remove(_document(documents, str(path[0])))
        else:
            del _owner(documents, path)[path[-1]]

    return change


def misspell(name: str, *path: str | int) -> Change:
    """Gives a field another name."""

    def change(documents: list[Manifest]) -> None:
        owner = _owner(documents, path)
        owner[name] = owner.pop(path[-1])

    return change


def add(document: Manifest) -> Change:
    """Applies one more document."""
    return lambda documents: documents.append(document)


def _document(documents: list[Manifest], which: str) -> Manifest:
    kind, _, name = which.partition("/")
    return next(
        one for one in documents if one["kind"] == kind and one["metadata"]["name"].startswith(name)
    )


def _owner(documents: list[Manifest], path: tuple[str | int, ...]) -> Any:
    owner: Any = _document(documents, str(path[0]))
    for part in path[1:-1]:
        owner = owner[part]
    return owner
