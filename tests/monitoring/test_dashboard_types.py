"""The dashboard has the types that releases of Grafana publish."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.tools import TOOLS, find_tool, miss

LIMIT_S: Final = 60.0
RELEASES: Final = ("11", "12", "13")
TYPES: Final = Path(__file__).with_name("dashboard_types.ts")
OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}
Check = Callable[[str, str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def text(project_root: Path) -> str:
    """The dashboard's JSON."""
    return (project_root / "deploy" / "monitoring" / "dashboard.json").read_text(encoding="utf-8")


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Type-check a dashboard against a Grafana release; returns the compiler's output."""
    compiler = find_tool("tsc")

    def run(release: str, content: str) -> "subprocess.CompletedProcess[str]":
        package = TOOLS.parent / "grafana" / "node_modules" / f"grafana-{release}"
        if not package.is_dir():
            miss(f"{package} is missing: run scripts/install_tools.sh")
        source = tmp_path / "dashboard.ts"
        source.write_text(TYPES.read_text(encoding="utf-8") + content, encoding="utf-8")
        paths = {"@grafana/schema": [str(package)], "@grafana/schema/*": [f"{package}/*"]}
        project = {"compilerOptions": {**OPTIONS, "paths": paths}, "files": [str(source)]}
        config = tmp_path / "tsconfig.json"
        config.write_text(json.dumps(project), encoding="utf-8")
        return subprocess.run(
            [compiler, "--project", str(config)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return run


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_of_grafana_knows_all_of_it(check: Check, text: str, release: str) -> None:
    checked = check(release, text)
    assert (checked.returncode, checked.stdout) == (0, "")
