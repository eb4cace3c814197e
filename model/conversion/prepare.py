"""From a source to a package: fetched, converted once into the cache, and found there after."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from model.conversion.cache import PackageCache, Progress, content_of, discard, key_of
from model.conversion.convert import Recipe, convert
from model.conversion.errors import ConversionError, HubUnreachableError, MissingExtraError
from model.conversion.hub import ask_commit, downloaded_commit, fetch
from model.conversion.source import CheckpointSource, HubSource
from model.graphs import Precision
from model.package import ModelPackage, PackageError, check_output


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to become a package.

    Attributes:
        base: The model; a `-dpt` repository of the hub brings the model it stands on.
        dense: Its dense heads, if they come from elsewhere.
        precisions: Of the graphs.
        name: The model's name; None leaves it to the source.
    """

    base: CheckpointSource
    dense: CheckpointSource | None = None
    precisions: Sequence[Precision] = ("fp32",)
    name: str | None = None

    @property
    def model_name(self) -> str:
        """What the package calls itself."""
        return self.name or self.base.name

    @property
    def parts(self) -> tuple[CheckpointSource, CheckpointSource | None]:
        """The model and its heads, each from its own place."""
        base = self.base.base if isinstance(self.base, HubSource) else None
        if base is None:
            return self.base, self.dense
        if self.dense is not None:
            raise ConversionError(f"{self.base} has dense heads of its own; leave --dense away")
        return base, self.base


@dataclass(frozen=True, slots=True)
class Located:
    """A source whose content is known, though not yet all here."""

    source: CheckpointSource
    identity: dict[str, JsonValue]

    def at(self) -> CheckpointSource:
        """The source at exactly this content."""
        commit = self.identity.get("commit")
        if isinstance(self.source, HubSource) and isinstance(commit, str):
            return HubSource(self.source.repository, commit)
        return self.source

    @property
    def provenance(self) -> JsonValue:
        """For the manifest; the files' digests stand in the checkpoint's own part."""
        if isinstance(self.source, HubSource):
            return {**self.identity, "revision": self.source.revision}
        return {"folder": self.source.path.resolve().name}


class Preparer:
    """Brings orders into a cache.

    Args:
        cache: Where packages are kept.
        progress: Told of each step.
        warn: Told of what went wrong and was mended.
    """

    def __init__(self, cache: PackageCache, progress: Progress, warn: Progress) -> None:
        self._cache = cache
        self._progress = progress
        self._warn = warn

    def prepare(self, order: Order, *, verify: bool = True) -> ModelPackage:
        """Find the order's package in the cache, or make it.

        Args:
            order: What is wanted.
            verify: Compare digests of a package that is found; without it whoever opens it does.

        Raises:
            ConversionError: It cannot be fetched, or the cache cannot be used.
            ValueError: It cannot be converted, as `convert` says.
        """
        base, dense = self._locate_all(order)
        key = key_of(base.identity, dense.identity if dense else None, order.precisions)
        name = order.base.name
        found = self._find(name, key, verify=verify)
        if found is None:
            with self._cache.writing(name, key, self._progress) as folder:
                self._cache.remove_leftovers(folder)
                # Whoever held the lock before may have made it.
                found = self._find(name, key, verify=True, is_mine=True)
                if found is None:
                    recipe = self._recipe(order, base, dense)
                    found = convert(recipe, folder, self._progress)
        for located in (base, dense):
            self._remember(located)
        return found

    def write(self, order: Order, output: Path) -> ModelPackage:
        """Make the order's package in a folder of the user's.

        Raises:
            ConversionError: It cannot be fetched.
            ValueError: It cannot be converted, or `output` holds something else.
        """
        check_output(output)
        base, dense = self._locate_all(order)
        return convert(self._recipe(order, base, dense), output, self._progress)

    def _find(
        self, name: str, key: str, *, verify: bool, is_mine: bool = False
    ) -> ModelPackage | None:
        """The package, if it is there and whole; a broken one goes where the lock is held."""
        try:
            return self._cache.find(name, key, verify=verify)
        except PackageError as error:
            if is_mine:
                self._warn(f"a converted package was broken and is made anew: {error}")
                discard(self._cache.folder(name, key))
            return None

    def _recipe(self, order: Order, base: Located, dense: Located | None) -> Recipe:
        provenance: dict[str, JsonValue] = {"source": base.provenance}
        if dense is not None:
            provenance["dense_source"] = dense.provenance
        return Recipe(
            base=self._fetch(base),
            dense=self._fetch(dense) if dense is not None else None,
            name=order.model_name,
            precisions=order.precisions,
            provenance=provenance,
        )

    def _fetch(self, located: Located) -> Path:
        source = located.at()
        if isinstance(source, HubSource):
            return fetch(source, self._progress).folder
        return source.path

    def _locate_all(self, order: Order) -> tuple[Located, Located | None]:
        base, dense = order.parts
        return self._locate(base), self._locate(dense) if dense is not None else None

    def _locate(self, source: CheckpointSource) -> Located:
        if isinstance(source, HubSource):
            identity: dict[str, JsonValue] = {"repository": source.repository}
            return Located(source, identity | {"commit": self._commit(source)})
        self._progress(f"looking at the files of {source}")
        return Located(source, content_of(source.path))

    def _commit(self, source: HubSource) -> str:
        """As the hub says now; where it cannot be asked, as it was when it last could."""
        try:
            return ask_commit(source)
        except (HubUnreachableError, MissingExtraError) as error:
            commit = self._cache.known_commit(source) or downloaded_commit(source)
            if commit is None:
                raise
            self._warn(f"going on with commit {commit} of {source}, which is here: {error}")
            return commit

    def _remember(self, located: Located | None) -> None:
        if located is not None and isinstance(located.source, HubSource):
            commit = located.identity["commit"]
            assert isinstance(commit, str)
            if self._cache.known_commit(located.source) == commit:
                return
            try:
                self._cache.remember_commit(located.source, commit)
            except OSError as error:
                # The package is here all the same; a cache may be mounted for reading only.
                self._warn(
                    f"the commit of {located.source} cannot be noted in {self._cache.root} "
                    f"({error.strerror}), so without a network it will not be known"
                )
