"""Masks in supervision, FiftyOne and matplotlib: the examples of the README, as published.

They are installed apart from this project: `scripts/tools/masks.sh`.
"""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.service.conftest import Encode, Serving
from tests.tools import TOOLS, miss

PYTHON = TOOLS.parent / "masks-venv" / "bin" / "python"
LIMIT_S = 300
CHECKS = {
    "matplotlib": """
found = [text.get_text() for text in axes.get_legend().texts]
assert found == [one.name for one in mask.classes if one.area_share]
assert axes.images[0].get_array().shape == (*mask.labels.shape, 3)
assert mask.plot(axes=axes) is axes
""",
    "supervision": """
assert len(detections) == len(mask.instances) > 0
assert (detections.area == [one.area for one in mask.instances]).all()
assert (sv.mask_to_xyxy(detections.mask) + (0, 0, 1, 1) == detections.xyxy).all()
assert set(detections.class_id) <= {1, 2} and (detections.confidence <= 1).all()
""",
    "fiftyone": """
assert len(sample.found.detections) == len(mask.instances) > 0
for shown, one in zip(sample.found.detections, mask.instances):
    full = shown.to_segmentation(frame_size=(width, height)).mask
    assert ((full > 0) == one.mask).all()
    assert (shown.label, shown.confidence) == (one.name, one.score)
""",
}
COUNTED = {"supervision": "detections", "fiftyone": "sample.found.detections"}


@pytest.mark.slow
@pytest.mark.parametrize("library", CHECKS)
async def test_the_readmes_example_gives_the_librarys_own_masks(
    project_root: Path, serving: Serving, encode_image: Encode, tmp_path: Path, library: str
) -> None:
    if not PYTHON.exists():
        miss(f"{library} is missing: run scripts/tools/masks.sh")
    client = project_root / "clients" / "python"
    page = (client / "README.md").read_text(encoding="utf-8")
    found = re.search(rf'```python title="{library}"\n(.*?)```', page, re.DOTALL)
    assert found is not None
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_image())
    async with serving() as server:
        example = found[1].replace("localhost:8000", f"127.0.0.1:{server.ports['http']}")
        code = f"photo = {str(photo)!r}\n{example}\n{CHECKS[library]}\n"
        if library in COUNTED:
            # Every pixel is background, so there is no instance.
            empty = example.replace("instances=True", "instances=True, background_threshold=1")
            code += f"{empty}\nassert len({COUNTED[library]}) == len(mask.instances) == 0"
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(tmp_path),
            "PYTHONPATH": str(client),
            "FIFTYONE_DO_NOT_TRACK": "1",
            "MPLBACKEND": "agg",
        }
        command = [str(PYTHON), "-W", "ignore", "-c", code]
        done = await asyncio.to_thread(
            lambda: subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                cwd=tmp_path,
                check=False,
            )
        )
    assert done.returncode == 0, done.stdout + done.stderr
