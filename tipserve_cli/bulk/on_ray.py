"""Bulk embedding on a Ray cluster.

Ray Data streams the parts through tasks that read, decode and scale images, and through a pool of
actors that embed and write. Its checkpoints write a row at least once, but a job must write it
exactly once: the file of a part is named by the part's number and appears by a rename, so a task
that Ray repeats, or a job that is run again, writes the same file or finds it.
"""

import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from model.image_codec import ImageLimits
from model.package import Manifest
from service.errors import InvalidRequest
from service.images import ImagePreparer, SizeRule
from service.messages import EmbedImagesRequest
from service.settings import Settings
from service.validation import check_resolution
from tipserve_cli.bulk.embedding import embed_images
from tipserve_cli.bulk.inputs import Columns, InputError, InputImage, Part, read_part
from tipserve_cli.bulk.output import Job, JobError, OutputFolder
from tipserve_cli.bulk.running import JobProgress, job_schema, missing_parts
from tipserve_cli.bulk.stores import StoreFailed
from tipserve_cli.engines.choice import load, settings_for
from tipserve_cli.engines.engine import EngineError
from tipserve_cli.engines.in_process import open_manifest

# An exception of another machine arrives as text with its traceback. These are the errors whose
# message is written for users.
USER_ERRORS: Final = {kind.__name__ for kind in (EngineError, InputError, JobError, StoreFailed)}
RAISED: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)*(\w+): (.+)$", re.MULTILINE)
KINDS: Final = ("Error", "Exception", "Failed", "Interrupt")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """The cluster, and the resources of each worker.

    Attributes:
        address: Of the cluster; None is the variable RAY_ADDRESS, or a new local cluster.
        workers: Actors; each loads the model.
        cpus: Cores of an actor.
        gpus: GPUs of an actor.
    """

    address: str | None = None
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


def run_on_ray(
    job: Job,
    folder: OutputFolder,
    progress: JobProgress,
    *,
    flags: Sequence[str],
    options: RayOptions,
) -> None:
    """Compute the missing parts. After an error, the parts that were written stay.

    Args:
        job: Inputs, options and model.
        folder: Receives the parts; it must be shared by all machines.
        progress: Notified of each part.
        flags: Settings of the service, for every actor.
        options: The cluster.

    Raises:
        JobError: Ray, a task or an actor failed.
    """
    parts = missing_parts(job, folder)
    _start(options)
    try:
        # Only Ray's own processes read these pickles.
        rows = [{"part": pickle.dumps(part)} for part in parts]
        settings = settings_for(flags)
        rule = _size_rule(open_manifest(settings), job.options.request)
        read = PartReader(_preparer(settings), rule, job.options.columns)
        written = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(read, num_cpus=1)
            .map_batches(
                PartWriter,
                fn_constructor_args=(flags, job.options.request, job_schema(job), folder.place),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=options.workers),
                num_cpus=options.cpus,
                num_gpus=options.gpus,
            )
        )
        for row in written.iter_rows():
            progress.part_written(row["num_rows"], row["num_bad"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise JobError(f"Ray failed: {find_reason(str(error))}") from error
    finally:
        ray.shutdown()


def _start(options: RayOptions) -> None:
    ray.init(
        address=options.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def find_reason(text: str) -> str:
    """Find the cause in the text of Ray's exception.

    Returns:
        The message of the first user error, else the first exception, else the first line.
    """
    raised = [match for match in RAISED.finditer(text) if match[1].endswith(KINDS)]
    for match in raised:
        if match[1] in USER_ERRORS:
            return match[2]
    if raised:
        return raised[0][0]
    return text.strip().partition("\n")[0] or "no reason given."


class PartReader:
    """A task: reads a part, decodes its images and resizes them for the model.

    It needs no model. If actors have GPUs, tasks run on other machines; on CPUs, Ray fuses both, so
    that pixels are not copied between processes.
    """

    def __init__(self, preparer: ImagePreparer, rule: SizeRule, columns: Columns) -> None:
        self._preparer = preparer
        self._rule = rule
        self._columns = columns

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Read a part; returns its description and its images."""
        with closing(read_part(pickle.loads(row["part"]), self._columns)) as items:
            prepared = [_prepare(item, self._preparer, self._rule) for item in items]
        return {"part": row["part"], "items": pickle.dumps(prepared)}


class PartWriter:
    """An actor: loads the model once, embeds parts and writes them."""

    def __init__(
        self, flags: Sequence[str], request: EmbedImagesRequest, schema: pa.Schema, folder: str
    ) -> None:
        self._engine = load(flags)
        self._request = request
        self._schema = schema
        self._folder = OutputFolder(folder)

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        """Write a part; returns the numbers of its rows and skipped images."""
        part: Part = pickle.loads(batch["part"][0].as_py())
        items: list[InputImage] = pickle.loads(batch["items"][0].as_py())
        outcomes = embed_images(self._engine, items, self._request)
        num_rows, num_bad = self._folder.write_part(part.number, outcomes, self._schema)
        return {"num_rows": [num_rows], "num_bad": [num_bad]}


def _preparer(settings: Settings) -> ImagePreparer:
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    return ImagePreparer(
        limits, max_patches=settings.max_batch_patches, jpeg_decode=settings.jpeg_decode
    )


def _size_rule(manifest: Manifest, request: EmbedImagesRequest) -> SizeRule:
    return SizeRule(
        resolution=check_resolution(request.resolution, manifest),
        fit=request.fit,
        patch_size=manifest.patch_size,
        multiple=manifest.size_multiple,
    )


def _prepare(item: InputImage, preparer: ImagePreparer, rule: SizeRule) -> InputImage:
    if not isinstance(item.data, bytes):
        return item
    try:
        preparer.measure(item.data, rule, param="images")
        pixels_HW3, size_hw = preparer.scale(item.data, rule, param="images")
    except InvalidRequest as error:
        problem = error.message.removeprefix("images: ")
        return replace(item, data=None, problem=problem, code=error.code)
    return replace(item, data=pixels_HW3, size_hw=size_hw)
