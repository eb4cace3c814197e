"""Reads the furniture catalogues of Sweet Home 3D: textured models of real size.

Shapes: T triangles, M materials, H W pixels of a texture.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

PACKAGE: Final = "sweethome3d-furniture"
PROPERTIES: Final = "PluginFurnitureCatalog.properties"
# The whole catalogue is for evaluation: nothing is trained on a model of it.
HELD_OUT: Final = "Scopia"
# Larger files are left out: 178 of 820, with 73 % of all bytes, which take as long to read.
MAX_MODEL_BYTES: Final = 500_000
TEXTURE_SIDE: Final = 128
METRES_PER_UNIT: Final = 0.01  # a catalogue has centimetres
_GREY: Final = (180, 180, 180)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Furniture:
    """A model of real size, standing on the ground.

    Attributes:
        corners_T33: Triangle, corner, coordinate in metres; x right, y up, z towards the front. The
            box of the model is centred at x = z = 0 and begins at y = 0.
        texture_T32: Coordinates of the corners in the texture.
        material_T: Index of the material.
        colours_M3: Colour of each material, 0 to 1.
        textures: uint8 [H, W, 3] of each material; None for a plain one.
    """

    corners_T33: NDArray[np.float32]
    texture_T32: NDArray[np.float32]
    material_T: NDArray[np.int64]
    colours_M3: NDArray[np.float32]
    textures: tuple[NDArray[np.uint8] | None, ...]

    @property
    def size(self) -> NDArray[np.float32]:
        """Width, height and depth in metres."""
        points = self.corners_T33.reshape(-1, 3)
        extent: NDArray[np.float32] = points.max(0) - points.min(0)
        return extent


def catalogue_files(folder: Path) -> dict[str, Path]:
    """The catalogues in a folder by name.

    Raises:
        FileNotFoundError: There is none.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.sh3f"))}
    if not found:
        raise FileNotFoundError(f"{folder} has no catalogue: unpack Debian's {PACKAGE}")
    return found


def read_catalogue(path: Path) -> Iterator[Furniture]:
    """Yield the models of a catalogue, without broken ones and very large ones."""
    with zipfile.ZipFile(path) as archive:
        for entry in _entries(archive.read(PROPERTIES).decode("latin-1")):
            model = _read_model(archive, entry)
            if model is not None:
                yield model


def _entries(text: str) -> list[dict[str, str]]:
    """The properties of each model of a catalogue."""
    numbered: dict[int, dict[str, str]] = {}
    for name, number, value in re.findall(r"^(\w+)#(\d+)\s*=\s*(.*?)\s*$", text, re.MULTILINE):
        numbered.setdefault(int(number), {})[name] = value
    needed = {"model", "width", "depth", "height"}
    return [entry for _, entry in sorted(numbered.items()) if needed <= entry.keys()]


class _Members(trimesh.resolvers.Resolver):
    """Files beside a model in its archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: PurePosixPath) -> None:
        self._archive, self._folder = archive, folder

    def get(self, name: str) -> bytes:
        return self._archive.read(str(self._folder / name.strip().removeprefix("./")))

    def write(self, name: str, data: Any) -> None:
        raise NotImplementedError

    def namespaced(self, namespace: str) -> "_Members":
        return _Members(self._archive, self._folder / namespace)

    def keys(self) -> list[str]:
        return self._archive.namelist()


def _read_model(archive: zipfile.ZipFile, entry: Mapping[str, str]) -> Furniture | None:
    file = PurePosixPath(entry["model"].lstrip("/"))
    if file.suffix.lower() != ".obj":
        return None
    try:
        if archive.getinfo(str(file)).file_size > MAX_MODEL_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about lines of a file that nothing reads
            scene = trimesh.load_scene(
                io.BytesIO(archive.read(str(file))),
                file_type="obj",
                resolver=_Members(archive, file.parent),
                process=False,
            )
    except (KeyError, ValueError, IndexError, OSError):
        return None
    meshes = [mesh for mesh in scene.geometry.values() if len(getattr(mesh, "faces", ()))]
    if not meshes:
        return None
    corners_T33 = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes])
    colours, textures = zip(*(_material(mesh.visual) for mesh in meshes), strict=True)
    return Furniture(
        corners_T33=_placed(corners_T33, entry),
        texture_T32=np.concatenate([_texture_points(mesh) for mesh in meshes]),
        material_T=np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes]),
        colours_M3=np.asarray(colours, np.float32) / np.float32(255),
        textures=textures,
    )


def _placed(corners_T33: NDArray[np.float64], entry: Mapping[str, str]) -> NDArray[np.float32]:
    """Turn and scale a model to the size in its catalogue, and put it on the ground."""
    rotation = [float(number) for number in entry.get("modelRotation", "").split()]
    if len(rotation) == 9:
        corners_T33 = corners_T33 @ np.reshape(rotation, (3, 3)).T
    points = corners_T33.reshape(-1, 3)
    low, extent = points.min(0), np.ptp(points, axis=0)
    wanted = np.array([float(entry[side]) for side in ("width", "height", "depth")])
    scale = wanted * METRES_PER_UNIT / np.maximum(extent, 1e-6)
    origin = low + extent * (0.5, 0.0, 0.5)
    placed: NDArray[np.float32] = ((corners_T33 - origin) * scale).astype(np.float32)
    return placed


def _texture_points(mesh: Any) -> NDArray[np.float32]:
    uv = getattr(mesh.visual, "uv", None)
    if uv is None or len(uv) != len(mesh.vertices):
        return np.zeros((len(mesh.faces), 3, 2), np.float32)
    points: NDArray[np.float32] = np.asarray(uv, np.float32)[mesh.faces]
    return np.nan_to_num(points)


def _material(visual: Any) -> tuple[tuple[int, int, int], NDArray[np.uint8] | None]:
    """Colour from 0 to 255, and texture of a mesh."""
    material = getattr(visual, "material", None)
    diffuse, image = getattr(material, "diffuse", None), getattr(material, "image", None)
    texture = None
    if isinstance(image, Image.Image):
        small = image.convert("RGB")
        small.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE))
        texture = np.asarray(small)
    if diffuse is None:
        return (255, 255, 255) if texture is not None else _GREY, texture
    red, green, blue = (int(value) for value in np.asarray(diffuse)[:3])
    return (red, green, blue), texture
