"""Says what a model package is, for people."""

from collections.abc import Iterator

from pydantic import JsonValue

from model.manifest import Manifest, ParityEntry
from model.package import ModelPackage


def describe_package(package: ModelPackage) -> str:
    """Lines on a verified package: what it takes and gives, its files, parity and origin."""
    return "\n".join(_lines(package))


def _lines(package: ModelPackage) -> Iterator[str]:
    manifest = package.manifest
    yield f"{manifest.name} ({manifest.variant}), licence {manifest.licence}, in {package.path}"
    yield f"outputs    {', '.join(manifest.outputs)}; {manifest.embed_dim} numbers each"
    yield f"sizes      {_sizes(manifest)}"
    yield f"texts      up to {manifest.max_text_tokens} tokens"
    total_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    yield f"files      {len(manifest.files)}, {total_mb:.1f} MB; all there, every SHA-256 is right"
    for name, entry in manifest.files.items():
        yield f"  {entry.size_bytes:>14,} bytes  {entry.sha256[:12]}  {name}"
    yield "parity     graphs against the model in float32, worst over the sizes measured"
    for parity in manifest.parity:
        yield f"  {_parity(parity)}"
    yield "provenance"
    yield from _tree(manifest.provenance, "  ")


def _sizes(manifest: Manifest) -> str:
    buckets = ", ".join(f"{height}x{width}" for height, width in manifest.shape_buckets)
    return (
        f"{manifest.native_size} pixels native, {manifest.min_size} to {manifest.max_size} in "
        f"steps of {manifest.size_multiple}; served {buckets}"
    )


def _parity(parity: ParityEntry) -> str:
    numbers = [f"difference {parity.max_abs_diff:.1e}"]
    shares = {
        "cosine": parity.min_cosine_cls,
        "patch cosine": parity.min_cosine_patches,
        "same mask": parity.mask_agreement,
    }
    numbers += [f"{name} {value:.6f}" for name, value in shares.items() if value is not None]
    if parity.depth_error is not None:
        numbers.append(f"depth {100 * parity.depth_error:.3g} % off")
    if parity.normals_degrees is not None:
        numbers.append(f"normals {parity.normals_degrees:.3g} degrees off")
    failed = "".join(f"; not to be used, {failure}" for failure in parity.failures[:1])
    return f"{parity.file} by {parity.runtime} in {parity.precision}: {', '.join(numbers)}{failed}"


def _tree(value: JsonValue, indent: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{indent}{value}"
        return
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}"
            yield from _tree(inner, indent + "  ")
        else:
            yield f"{indent}{key}: {inner}"
