"""Writes a furniture catalogue in miniature, laid out as Sweet Home 3D's are."""

import io
import zipfile
from pathlib import Path

from PIL import Image

CORNERS = [(x, y, z) for x in (0, 2) for y in (0, 4) for z in (0, 1)]
SIDES = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
BOX = "\n".join(
    [
        "mtllib box.mtl",
        *(f"v {x} {y} {z}" for x, y, z in CORNERS),
        *(f"vt {u} {v}" for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))),
        "usemtl painted",
        *(f"f {' '.join(str(corner) for corner in side)}" for side in SIDES[:4]),
        "usemtl printed",
        *(f"f {' '.join(f'{c}/{n}' for n, c in enumerate(side, 1))}" for side in SIDES[4:]),
    ]
)
MATERIALS = "newmtl painted\nKd 1.0 0.0 0.0\nnewmtl printed\nKd 1 1 1\nmap_Kd print.png\n"
PROPERTIES = """id=test
name#1=Red box
creator#1=A. Maker
model#1=/models/box.obj
width#1=50
depth#1=30
height#1= 80
name#2=Broken
model#2=/models/missing.obj
width#2=50
depth#2=30
height#2=80
name#3=Without a model
name#4=Lying box
model#4=/models/box.obj
width#4=50
depth#4=80
height#4=30
modelRotation#4=1 0 0 0 0 -1 0 1 0
"""


def write_catalogue(path: Path) -> None:
    """A box of two materials, standing and lying, and entries that cannot be read."""
    image = io.BytesIO()
    Image.new("RGB", (300, 8), "blue").save(image, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", PROPERTIES.encode("latin-1"))
        archive.writestr("models/box.obj", BOX)
        archive.writestr("models/box.mtl", MATERIALS)
        archive.writestr("models/print.png", image.getvalue())
