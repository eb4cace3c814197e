"""Builds the serving image from the Dockerfile on a locally built base."""

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

from tests.containers.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
BASE_SCRIPT = ROOT / "scripts" / "stand_in_base.sh"
# pip settings that a build needs, if set.
PIP_KEYS = (
    *("cert", "client-cert", "constraint", "extra-index-url", "find-links", "index-url"),
    *("proxy", "timeout", "trusted-host"),
)
REVISION = "0" * 40
BASE_LIMIT_S = 600.0
BUILD_LIMIT_S = 1200.0


def stand_in_base(engine: Engine) -> str:
    """Name of the base, built once per machine and rebuilt when its script changes."""
    made_by = BASE_SCRIPT.read_bytes() + sys.version.encode()
    name = f"localhost/tipserve-stand-in-base:{hashlib.sha256(made_by).hexdigest()[:12]}"
    engine.run([str(BASE_SCRIPT), name, sys.executable], limit_s=BASE_LIMIT_S)
    return name


def build_image(engine: Engine, tag: str, scratch: Path) -> None:
    """Build the default target of the Dockerfile, with cached layers."""
    settings = pip_settings()
    options = ["--pull=never", "--layers", "--format=docker", f"--tag={tag}"]
    options += [f"--build-arg=BASE={stand_in_base(engine)}", f"--build-arg=REVISION={REVISION}"]
    if settings:
        path = scratch / "pip.conf"
        # A list has one line per word.
        lines = (f"{key} = " + "\n    ".join(text.split()) for key, text in settings.items())
        path.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
        options.append(f"--secret=id=pip,src={path}")
    # Files named by those settings are mounted at the same path during the build.
    for word in " ".join(settings.values()).split():
        if word.startswith("/") and Path(word).exists():
            options.append(f"--volume={word}:{word}:ro")
    engine.buildah("build", *options, str(ROOT), limit_s=BUILD_LIMIT_S)


def pip_settings() -> dict[str, str]:
    """Pip's settings on this machine that a build needs; variables override files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60.0)
    lines = [line.partition("=") for line in listed.stdout.splitlines() if "=" in line]
    found: dict[str, str] = {}
    for name, _, value in sorted(lines, key=lambda line: line[0].startswith(":env:")):
        key = name.rpartition(".")[2]
        if key in PIP_KEYS:
            found[key] = str(ast.literal_eval(value))
    return found
