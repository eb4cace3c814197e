"""The client installs without the service, and imports none of what the service needs."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import importlib.metadata
import sys

BLOCKED = {"fastapi", "onnxruntime", "pydantic", "PIL", "service", "model"}


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise AssertionError("the client imported " + name)

sys.meta_path.insert(0, Block())
import tipserve_client
from tipserve_client.generated import stream_pb2

assert sys.argv[1] in tipserve_client.__file__, tipserve_client.__file__
files = importlib.metadata.files("tipserve-client")
assert any(file.name == "py.typed" for file in files)
for kind, url in [("Client", "http://127.0.0.1:9"), ("Client", "grpc://127.0.0.1:9")]:
    client = getattr(tipserve_client, kind)(url, retry=tipserve_client.Retry(max_attempts=1))
    try:
        client.embed_texts(["dog"], timeout_s=5)
    except tipserve_client.Unavailable:
        print("unavailable")
    client.close()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A virtual environment with the client's wheel; what it depends on comes from this one's."""
    folder = tmp_path_factory.mktemp("client")
    source = folder / "source"
    ignored = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "clients/python"],
        cwd=project_root,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in ignored.stdout.splitlines():
        target = source / Path(name).relative_to("clients/python")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((project_root / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("tipserve_client-*.whl")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    into = [*pip, "--python", str(venv / "bin" / "python"), "install", "--no-index", "--no-deps"]
    subprocess.run([*into, str(wheel)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    this = {Path(path) for path in sys.path if path.endswith("site-packages")}
    (packages / "dependencies.pth").write_text("\n".join(map(str, this)) + "\n", encoding="utf-8")
    return venv


def test_it_works_without_the_service(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "bin" / "python"), "-I", "-c", PROGRAM, str(installed)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["unavailable", "unavailable"]
