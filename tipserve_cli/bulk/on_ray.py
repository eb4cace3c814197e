"""Bulk embedding on a Ray cluster.

Ray Data passes the parts to a pool of actors, each of which loads the model and computes a part as
a single process does. Its checkpoints write a row at least once, but a job must write it exactly
once: the file of a part is named by the part's number and appears whole, so a task that Ray
repeats, or a job that is run again, writes the same file or finds it.
"""

import logging
import pickle
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from tipserve_cli.bulk.inputs import Inputs, Part
from tipserve_cli.bulk.job import Job, JobFolder, Task, compute_here, run_job
from tipserve_cli.engine import UserError
from tipserve_cli.local import load, open_manifest
from tipserve_cli.model_options import RayOptions
from tipserve_cli.progress import Advance

# An exception of another machine arrives as text with its traceback. The first of these is the
# error whose message is written for users.
CAUSES: Final = (r"^\S*\bUserError: (.+)$", r"^([A-Za-z_.]+(?:Error|Exception): .+)$", r"(.+)")


def run_on_ray(
    task: Task, inputs: Inputs, flags: Sequence[str], options: RayOptions, **output: Any
) -> int:
    """Run or continue a job on a cluster, as `run_job`.

    Args:
        task: What is computed.
        inputs: The images; all machines must share them and the output.
        flags: Settings of the service, for every actor.
        options: The cluster.
        output: As for `run_job`.
    """
    manifest = open_manifest(flags)
    names = {"name": manifest.name, "fingerprint": manifest.digest}
    job = Job(inputs=inputs, task=task, model={**names, "embed_dim": manifest.embed_dim})
    return run_job(job, partial(_compute, flags=flags, options=options), **output)


def _compute(
    parts: Sequence[Part],
    folder: JobFolder,
    advance: Advance,
    *,
    flags: Sequence[str],
    options: RayOptions,
) -> None:
    """Compute parts. After an error, the parts that were written stay."""
    ray.init(
        address=options.ray if isinstance(options.ray, str) else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        # Only Ray's own processes read these pickles.
        rows = [{"part": pickle.dumps(part)} for part in parts]
        written = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            PartWriter,
            fn_constructor_args=(flags, folder.job, folder.place),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=options.workers),
            num_cpus=options.cpus_per_worker,
            num_gpus=options.gpus_per_worker,
        )
        for row in written.iter_rows():
            advance(row["num_bad"], row["num_done"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise UserError(f"Ray failed: {find_reason(str(error))}") from error
    finally:
        ray.shutdown()


def find_reason(text: str) -> str:
    """Find the cause in the text of Ray's exception: a user error, any error, or the first line."""
    for pattern in CAUSES:
        if found := re.search(pattern, text, re.MULTILINE):
            return found[1]
    return "no reason given."


class PartWriter:
    """An actor: loads the model once, computes parts and writes them."""

    def __init__(self, flags: Sequence[str], job: Job, folder: str) -> None:
        self._engine = load(flags)
        self._folder = JobFolder(folder, job)

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        """Write a part; returns how much is done, and the number of skipped images."""
        part: Part = pickle.loads(batch["part"][0].as_py())
        counts = {"num_bad": 0, "num_done": 0}

        def count(num_skipped: int, num_done: int = 1) -> None:
            counts["num_bad"] += num_skipped
            counts["num_done"] += num_done

        compute_here(self._engine, [part], self._folder, count)
        return {name: [number] for name, number in counts.items()}
