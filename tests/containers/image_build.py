"""Builds the serving image from the Dockerfile, on a base that this machine can make itself."""

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

from tests.containers.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
BASE_SCRIPT = ROOT / "scripts" / "stand_in_base.sh"
# What of pip's own settings a build needs as well, where there are any.
PIP_KEYS = (
    "cert",
    "client-cert",
    "constraint",
    "extra-index-url",
    "find-links",
    "index-url",
    "proxy",
    "timeout",
    "trusted-host",
)
REVISION = "0" * 40
BASE_LIMIT_S = 600.0
BUILD_LIMIT_S = 1200.0


def stand_in_base(engine: Engine) -> str:
    """The name of the base; made once on this machine, and again when its script changes."""
    made_by = BASE_SCRIPT.read_bytes() + sys.version.encode()
    name = f"localhost/tipserve-stand-in-base:{hashlib.sha256(made_by).hexdigest()[:12]}"
    engine.run([str(BASE_SCRIPT), name, sys.executable], limit_s=BASE_LIMIT_S)
    return name


def build_image(engine: Engine, tag: str, scratch: Path) -> None:
    """Build the default target of the Dockerfile; layers stay and make the next build quick."""
    settings = pip_settings()
    options = ["--pull=never", "--layers", "--format=docker", f"--tag={tag}"]
    options += [f"--build-arg=BASE={stand_in_base(engine)}", f"--build-arg=REVISION={REVISION}"]
    if settings:
        path = scratch / "pip.conf"
        path.write_text(as_pip_conf(settings), encoding="utf-8")
        options.append(f"--secret=id=pip,src={path}")
    # What those settings name on this machine has the same place during the build.
    for word in " ".join(settings.values()).split():
        if word.startswith("/") and Path(word).exists():
            options.append(f"--volume={word}:{word}:ro")
    engine.buildah("build", *options, str(ROOT), limit_s=BUILD_LIMIT_S)


def pip_settings() -> dict[str, str]:
    """What pip was told on this machine, by files and variables; a variable counts more."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60.0)
    return read_pip_settings(listed.stdout)


def read_pip_settings(listed: str) -> dict[str, str]:
    """The settings that a build needs, from what `pip config list` prints."""
    lines = [line.partition("=") for line in listed.splitlines() if "=" in line]
    found: dict[str, str] = {}
    for is_variable in (False, True):
        for name, _, value in lines:
            scope, _, key = name.rpartition(".")
            if key in PIP_KEYS and (scope == ":env:") is is_variable:
                found[key] = str(ast.literal_eval(value))
    return found


def as_pip_conf(settings: dict[str, str]) -> str:
    """The same as pip reads it from a file; a list has a line for each word."""
    lines = [f"{key} = " + "\n    ".join(value.split()) for key, value in settings.items()]
    return "\n".join(["[global]", *lines, ""])
