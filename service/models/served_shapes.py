"""The shapes that a model is warmed up for, and what images and texts of them cost in patches."""

import math
from collections.abc import Sequence
from typing import Final

from model.dense_maps import MapTask
from model.package import Manifest, PackageError
from model.runtime.base import Runtime
from service.lanes.work import Bucket
from service.messages import MAP_TASKS

WARM_UP_TOKENS: Final = 8


def with_sizes(manifest: Manifest, sizes: Sequence[tuple[int, int]]) -> Manifest:
    """A manifest whose served shapes have these (height, width) too, at the end.

    Raises:
        PackageError: The model does not take images of such a size.
    """
    unit, least, most = manifest.size_multiple, manifest.min_size, manifest.max_size
    for height, width in sizes:
        for side in (height, width):
            if side % unit or not least <= side <= most:
                raise PackageError(
                    f"{manifest.name} cannot serve {height} x {width} pixels: sides are multiples "
                    f"of {unit} from {least} to {most}; change sizes"
                )
    shapes = list(dict.fromkeys([*manifest.shape_buckets, *sizes]))
    return manifest.model_copy(update={"shape_buckets": shapes})


def num_patches(shape: tuple[int, ...], manifest: Manifest) -> int:
    """Patches of an image of this height and width in pixels."""
    return math.prod(shape) // manifest.patch_size**2


def served_buckets(manifest: Manifest, max_patches: int) -> list[Bucket]:
    """The shapes of images to embed and of texts that are warmed up; see `with_maps`.

    Raises:
        PackageError: An image of one of them is more than a batch may hold.
    """
    for height, width in manifest.shape_buckets:
        needed = num_patches((height, width), manifest)
        if needed > max_patches:
            raise PackageError(
                f"{manifest.name} serves {height} x {width} pixels, which are {needed} "
                f"patches; raise max_batch_patches above {max_patches}"
            )
    shapes = [Bucket("image", shape) for shape in manifest.shape_buckets]
    return [*shapes, Bucket("text", (min(WARM_UP_TOKENS, manifest.max_text_tokens),))]


def served_tasks(manifest: Manifest, runtime: Runtime) -> tuple[MapTask, ...]:
    """The dense heads that the package has and its runtime computes.

    Raises:
        PackageError: The package allows sizes that no dense head takes.
    """
    tasks = tuple(t for t in MAP_TASKS if t in manifest.outputs and t in runtime.tasks)
    if tasks and manifest.size_multiple % (2 * manifest.patch_size):
        raise PackageError(
            f"{manifest.name} has dense heads, which take multiples of {2 * manifest.patch_size} "
            f"pixels, and allows multiples of {manifest.size_multiple}; export it again"
        )
    return tasks


def with_maps(buckets: Sequence[Bucket], tasks: Sequence[MapTask]) -> list[Bucket]:
    """The shapes that are warmed up, and of images those by which each dense head is."""
    images = [bucket for bucket in buckets if bucket.kind == "image"]
    return [*buckets, *(Bucket(task, bucket.shape) for task in tasks for bucket in images)]


def item_cost(manifest: Manifest, bucket: Bucket) -> int:
    """Patches of an image, tokens of a text."""
    return num_patches(bucket.shape, manifest) if bucket.is_image else bucket.shape[0]
