"""The manifests of bulk jobs: their arguments agree, fit the cluster, and run."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.bulk.output import JobOptions
from service.commands.embed import EmbedOptions
from service.commands.embed_job import job_options
from service.commands.model_options import ModelOptions
from service.commands.program import new_app
from tests.deploy import kustomizations
from tests.deploy.workloads import Manifest, of_kind, workloads

LIMIT_S = 60.0


@pytest.fixture
def job() -> Manifest:
    (found,) = of_kind(kustomizations.build("bulk"), "Job")
    return found


@pytest.fixture
def rayjob() -> Manifest:
    (found,) = of_kind(kustomizations.build("bulk/rayjob.yaml"), "RayJob")
    return found


def job_arguments(job: Manifest) -> list[str]:
    """The arguments of `tipserve embed`."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["tipserve"]
    command, *arguments = container["args"]
    assert command == "embed"
    return list(arguments)


def rayjob_arguments(rayjob: Manifest) -> list[str]:
    program, command, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert [program, command] == ["tipserve", "embed"]
    return arguments


def parse(arguments: list[str]) -> tuple[tuple[str, ...], EmbedOptions]:
    """The paths and the options of a command line."""
    _, bound, _ = new_app().parse_args(["embed", *arguments])
    return bound.args, bound.kwargs["options"]


def chosen(arguments: list[str]) -> JobOptions:
    return job_options(parse(arguments)[1], ModelOptions())


def test_one_machine_and_many_compute_the_same(job: Manifest, rayjob: Manifest) -> None:
    alone, by_ray = job_arguments(job), rayjob_arguments(rayjob)
    assert [option for option in by_ray if option in alone] == alone
    assert chosen(alone) == chosen(by_ray)


def test_ray_has_room_for_the_workers(rayjob: Manifest) -> None:
    _, options = parse(rayjob_arguments(rayjob))
    assert options.ray is True
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    num_cpus = group["replicas"] * int(container["resources"]["requests"]["cpu"])
    assert options.workers * options.cpus_per_worker <= num_cpus
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_input_and_output_are_on_the_volume(job: Manifest, rayjob: Manifest) -> None:
    for workload in workloads([job, rayjob]):
        arguments = (job_arguments if workload.kind == "Job" else rayjob_arguments)(
            workload.document
        )
        paths, options = parse(arguments)
        (container,) = workload.containers
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        for path in (*paths, str(options.output)):
            assert path.startswith(f"{mounts['data']}/")


def test_the_jobs_arguments_run(project_root: Path, tmp_path: Path, job: Manifest) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (30, 20), (200, 10, 20)).save(images / "red.png")
    (images / "broken.jpg").write_bytes(b"nonsense")
    arguments = [one.replace("/data/", f"{tmp_path}/") for one in job_arguments(job)]
    ended = subprocess.run(
        [sys.executable, "-m", "service.commands", "embed", *arguments],
        cwd=project_root,
        env=dict(os.environ),
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 0, ended.stderr
    assert "1 images were skipped" in ended.stderr
    assert pq.read_table(tmp_path / "embeddings" / "part-00000.parquet").num_rows == 1
