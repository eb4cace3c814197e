"""The manifests of bulk jobs: their arguments agree, fit the cluster, and run."""

import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from tests.deploy import kustomizations
from tests.deploy.workloads import Workload, workloads
from tests.tools import run
from tipserve_cli.commands.embed import EmbedOptions, job_task
from tipserve_cli.model_options import ModelOptions
from tipserve_cli.program import new_app

PATHS = ("bulk", "bulk/rayjob.yaml")


def pods(name: str) -> tuple[Workload, list[str]]:
    """The pods that read images, and the arguments of `tipserve embed`."""
    *_, found = workloads(kustomizations.build(name))
    (container,) = found.containers
    entrypoint = found.document["spec"].get("entrypoint")
    words = shlex.split(entrypoint) if entrypoint else container["command"] + container["args"]
    assert words[:2] == ["tipserve", "embed"]
    return found, words[2:]


def parse(arguments: list[str]) -> tuple[tuple[str, ...], EmbedOptions]:
    """The paths and the options of a command line."""
    _, bound, _ = new_app().parse_args(["embed", *arguments])
    return bound.args, bound.kwargs["options"]


def test_one_machine_and_many_compute_the_same() -> None:
    alone, by_ray = (pods(name)[1] for name in PATHS)
    assert [option for option in by_ray if option in alone] == alone
    first, second = (job_task(parse(words)[1], ModelOptions()) for words in (alone, by_ray))
    assert first == second


def test_the_jobs_arguments_run(project_root: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (30, 20), (200, 10, 20)).save(images / "red.png")
    (images / "broken.jpg").write_bytes(b"nonsense")
    arguments = [one.replace("/data/", f"{tmp_path}/") for one in pods("bulk")[1]]
    command = (sys.executable, "-m", "tipserve_cli", "embed")
    ended = run(*command, *arguments, cwd=project_root)
    assert ended.returncode == 0, ended.stderr
    assert "1 images were skipped" in ended.stderr
    assert pq.read_table(tmp_path / "embeddings" / "part-00000.parquet").num_rows == 1
