"""From a source to a package: download, convert once into the cache, and find it there later."""

from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from model.conversion.cache import PackageCache, content_of, discard, key_of
from model.conversion.convert import ConversionRequest, convert
from model.conversion.errors import HubUnreachableError, MissingExtraError
from model.conversion.hub import find_commit
from model.conversion.source import CheckpointSource, FolderSource, HubSource
from model.package import ModelPackage, PackageError, Progress, check_output

Identity = dict[str, JsonValue]


class Preparer:
    """Makes the packages of requests, in a cache or in a given folder."""

    def __init__(self, cache: PackageCache, progress: Progress, warn: Progress) -> None:
        self._cache = cache
        self._progress = progress
        self._warn = warn

    def prepare(self, request: ConversionRequest, *, verify: bool = True) -> ModelPackage:
        """Find the package of a request in the cache, or make it.

        Args:
            request: What to convert.
            verify: Compare the digests of a package that is found; otherwise its reader does.

        Raises:
            ValueError: The source cannot be downloaded or converted, or the cache cannot be used.
        """
        pinned, base, dense = self._pinned(request)
        name = request.name or request.base.name
        key = key_of(base, dense, request.precisions)
        found = self._find(name, key, verify=verify)
        if found is None:
            with self._cache.writing(name, key, self._progress) as folder:
                # The process that held the lock before may have made it.
                found = self._find(name, key, verify=True, is_mine=True)
                if found is None:
                    found = convert(pinned, folder, self._progress)
        for asked, now in ((request.base, pinned.base), (request.dense, pinned.dense)):
            if isinstance(asked, HubSource) and isinstance(now, HubSource):
                self._cache.remember_commit(asked, now.revision)
        return found

    def write(self, request: ConversionRequest, output: Path) -> ModelPackage:
        """Make the package of a request in a folder of the user's; raises as `prepare` does."""
        check_output(output)
        pinned, *_ = self._pinned(request)
        return convert(pinned, output, self._progress)

    def _find(
        self, name: str, key: str, *, verify: bool, is_mine: bool = False
    ) -> ModelPackage | None:
        """Open the package if it exists; a broken one is removed if this process holds the lock."""
        try:
            return self._cache.find(name, key, verify=verify)
        except PackageError as error:
            if is_mine:
                self._warn(f"a converted package was broken and is converted again: {error}")
                discard(self._cache.folder(name, key))
            return None

    def _pinned(
        self, request: ConversionRequest
    ) -> tuple[ConversionRequest, Identity, Identity | None]:
        """The request for what its sources hold now, and the identities of model and heads."""
        base, identity, origin = self._pin(request.base)
        dense, dense_identity, provenance = None, None, {"source": origin}
        if request.dense is not None:
            dense, dense_identity, provenance["dense_source"] = self._pin(request.dense)
        name = request.name or request.base.name
        pinned = replace(request, base=base, dense=dense, name=name, provenance=provenance)
        return pinned, identity, dense_identity

    def _pin(self, source: CheckpointSource) -> tuple[CheckpointSource, Identity, JsonValue]:
        """A source as it is now, its identity for the cache key, and what the manifest says."""
        if isinstance(source, FolderSource):
            self._progress(f"reading the files of {source}")
            # The manifest has the files' digests elsewhere.
            return source, content_of(source.path), {"folder": source.path.resolve().name}
        try:
            commit = find_commit(source)
        except (HubUnreachableError, MissingExtraError) as error:
            known = self._cache.known_commit(source)
            if known is None:
                raise
            self._warn(f"continuing with commit {known} of {source}, which is cached: {error}")
            commit = known
        identity: Identity = {"repository": source.repository, "commit": commit}
        pinned = HubSource(source.repository, commit)
        return pinned, identity, {**identity, "revision": source.revision}
