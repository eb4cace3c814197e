"""Manifests of packages that exist only as manifests."""

from collections.abc import Mapping

from model.manifest import FileEntry, Manifest, ParityEntry


def make_manifest(
    *parity: ParityEntry, files: Mapping[str, int] | None = None, **changed: object
) -> Manifest:
    """A valid manifest with these measurements and files (sizes in bytes by name)."""
    usual: dict[str, object] = {
        "name": "made-up",
        "variant": "b14",
        "embed_dim": 8,
        "native_size": 28,
        "min_size": 14,
        "max_size": 56,
        "shape_buckets": [(28, 28)],
        "temperature": 0.01,
        "outputs": ["cls1", "depth", "normals", "segmentation"],
        "licence": "none",
    }
    entries = {n: FileEntry(sha256="0" * 64, size_bytes=size) for n, size in (files or {}).items()}
    return Manifest.model_validate(usual | changed | {"files": entries, "parity": parity})
