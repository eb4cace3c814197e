"""A package is verified against its manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from model import package as package_module
from model.manifest import Manifest
from model.package import ModelPackage, PackageError, open_package, write_manifest

# What lies in a package's folder is what its manifest describes, and nothing that runs code.

DRAFT = Manifest(
    name="tiny",
    variant="tiny/14",
    embed_dim=32,
    native_size=56,
    min_size=14,
    max_size=112,
    shape_buckets=[(56, 56)],
    temperature=0.01,
    outputs=["patches"],
    licence="Apache-2.0",
)


def graph(location: str | None = None) -> bytes:
    """A graph with one tensor, whose data lies beside it if a location is given."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if location is not None:
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    made = helper.make_graph([], "g", [], [], initializer=[weights])
    return bytes(helper.make_model(made).SerializeToString())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of three files with a manifest; a file outside of it."""
    package = tmp_path / "package"
    (package / "onnx").mkdir(parents=True)
    (package / "onnx" / "vision_model.onnx").write_bytes(graph("vision_model.onnx.data"))
    (package / "onnx" / "vision_model.onnx.data").write_bytes(b"1234")
    (package / "config.json").write_bytes(b"{}")
    (tmp_path / "outside").write_bytes(b"1234")
    write_manifest(package, DRAFT)
    return package


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "x.pt", "deep/x.pth", "x.pkl", "x.PICKLE", "x.ckpt", "x.joblib"),
        ".hidden/x.pt",
    ],
)
def test_a_pickle_is_refused(folder: Path, name: str, verify: bool) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(PackageError, match=r"may hold a pickle.*remove it"):
        open_package(folder, verify=verify)


def test_a_pickle_is_not_packaged_either(folder: Path) -> None:
    (folder / "heads.pt").touch()
    before = (folder / "tipserve.json").read_bytes()
    with pytest.raises(PackageError, match="may hold a pickle"):
        write_manifest(folder, DRAFT)
    assert (folder / "tipserve.json").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["later.plan", "model.safetensors", "onnx/other.onnx", "modeling.py", "x.so", "x"]
)
def test_what_the_manifest_does_not_list_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(PackageError, match=r"is not in the manifest.*remove it"):
        open_package(folder)


def test_what_nothing_loads_may_lie_there(folder: Path) -> None:
    for name in (".gitattributes", ".cache/huggingface/x.metadata", "NOTES.md", "LICENSE", "a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "lost+found").mkdir()
    assert open_package(folder).manifest.name == "tiny"


@pytest.mark.parametrize("verify", [True, False])
def test_a_link_out_of_the_package_is_refused(folder: Path, verify: bool) -> None:
    data = folder / "onnx" / "vision_model.onnx.data"
    data.unlink()
    data.symlink_to(folder.parent / "outside")  # the same bytes, but somebody else's file
    with pytest.raises(PackageError, match=r"leads out of the package.*cp -rL"):
        open_package(folder, verify=verify)


def test_a_folder_that_is_a_link_out_is_refused(folder: Path) -> None:
    (folder / "onnx").rename(folder.parent / "onnx")
    (folder / "onnx").symlink_to(folder.parent / "onnx")
    with pytest.raises(PackageError, match="is not in the manifest"):
        open_package(folder)


def test_links_inside_of_the_package_are_followed(folder: Path) -> None:
    # As Kubernetes mounts a volume: hidden folders, and links to what is in them.
    (folder / "..2026").mkdir()
    (folder / "config.json").rename(folder / "..2026" / "config.json")
    (folder / "..data").symlink_to("..2026")
    (folder / "config.json").symlink_to("..data/config.json")
    assert open_package(folder).file("config.json").read_bytes() == b"{}"


def test_a_package_behind_a_link_opens(folder: Path) -> None:
    (folder.parent / "latest").symlink_to("package")
    assert open_package(folder.parent / "latest").manifest.name == "tiny"


@pytest.mark.parametrize("location", ["../../outside", "/etc/passwd", "../../../outside", ""])
def test_weights_outside_of_the_package_are_refused(folder: Path, location: str) -> None:
    (folder / "onnx" / "vision_model.onnx").write_bytes(graph(location))
    with pytest.raises(PackageError, match=r"keeps weights in '.*export the model again"):
        write_manifest(folder, DRAFT)


def test_weights_that_are_not_listed_are_refused(folder: Path) -> None:
    (folder / "onnx" / "vision_model.onnx").write_bytes(graph("absent.data"))
    with pytest.raises(PackageError, match=r"'absent\.data', which the manifest does not list"):
        write_manifest(folder, DRAFT)


def test_weights_beside_the_graph_may_be_named_by_way_of_their_folder(folder: Path) -> None:
    (folder / "onnx" / "vision_model.onnx").write_bytes(graph("./vision_model.onnx.data"))
    write_manifest(folder, DRAFT)
    assert open_package(folder).manifest.name == "tiny"


def test_a_cut_graph_is_refused_though_its_digest_is_right(folder: Path) -> None:
    (folder / "onnx" / "vision_model.onnx").write_bytes(graph()[:-2])
    with pytest.raises(PackageError, match="not a complete ONNX graph"):
        write_manifest(folder, DRAFT)


def test_a_changed_graph_is_refused_before_it_is_read(folder: Path) -> None:
    path = folder / "onnx" / "vision_model.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(PackageError, match="SHA-256"):
        open_package(folder)


def test_real_graphs_pass(tiny_package: ModelPackage) -> None:
    assert open_package(tiny_package.path) == tiny_package
    onnx.load(tiny_package.file("onnx/vision_model.onnx"), load_external_data=False)


# A package opens only as its manifest says; otherwise the message says what to do.

# The field `ir_version`: as short as a graph can be.
GRAPH = b"\x08\x0a"


@pytest.fixture
def folder_package(tmp_path: Path) -> Path:
    """A package of two files with a manifest."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "vision_model.onnx").write_bytes(GRAPH)
    (tmp_path / "config.json").write_bytes(b"{}")
    write_manifest(tmp_path, DRAFT)
    return tmp_path


def change_manifest(folder_package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest as a text, past our own checks."""
    path = folder_package / "tipserve.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_written_package_opens(folder_package: Path) -> None:
    opened = open_package(folder_package)
    assert set(opened.manifest.files) == {"config.json", "onnx/vision_model.onnx"}
    assert opened.file("onnx/vision_model.onnx").read_bytes() == GRAPH
    assert open_package(str(folder_package)).manifest == opened.manifest


def test_writing_twice_gives_the_same_manifest(folder_package: Path) -> None:
    before = (folder_package / "tipserve.json").read_bytes()
    write_manifest(folder_package, DRAFT)
    assert (folder_package / "tipserve.json").read_bytes() == before
    assert sorted(path.name for path in folder_package.iterdir()) == [
        "config.json",
        "onnx",
        "tipserve.json",
    ]


def test_a_tampered_file_of_the_same_length_is_found(folder_package: Path) -> None:
    (folder_package / "config.json").write_bytes(b"[]")
    with pytest.raises(PackageError, match=r"config\.json.*SHA-256.*copy the package again"):
        open_package(folder_package)
    assert open_package(folder_package, verify=False).manifest.name == "tiny"


def test_a_truncated_file_is_found_without_hashing(folder_package: Path) -> None:
    (folder_package / "config.json").write_bytes(b"{")
    with pytest.raises(PackageError, match=r"has 1 bytes, its manifest says 2"):
        open_package(folder_package, verify=False)


def test_a_missing_file_is_found(folder_package: Path) -> None:
    (folder_package / "config.json").unlink()
    with pytest.raises(PackageError, match=r"lacks 'config\.json'.*export it again"):
        open_package(folder_package, verify=False)


def test_a_wrong_digest_is_found(folder_package: Path) -> None:
    change_manifest(folder_package, lambda d: d["files"]["config.json"].update(sha256="0" * 64))
    with pytest.raises(PackageError, match="SHA-256"):
        open_package(folder_package)


def test_an_unknown_key_is_refused(folder_package: Path) -> None:
    change_manifest(folder_package, lambda d: d.update(pickle="weights.bin"))
    with pytest.raises(PackageError, match=r"(?s)export the model again.*pickle"):
        open_package(folder_package)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "onnx/../../outside"])
def test_a_path_out_of_the_folder_is_refused(folder_package: Path, name: str) -> None:
    def add(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"]["config.json"]

    change_manifest(folder_package, add)
    with pytest.raises(PackageError, match="inside the package"):
        open_package(folder_package)


def test_a_manifest_without_files_is_refused(folder_package: Path) -> None:
    change_manifest(folder_package, lambda d: d.update(files={}))
    with pytest.raises(PackageError, match="lists no files"):
        open_package(folder_package)


def test_broken_json_is_refused(folder_package: Path) -> None:
    (folder_package / "tipserve.json").write_text("{", encoding="utf-8")
    with pytest.raises(PackageError, match="not a manifest"):
        open_package(folder_package)


def test_a_file_that_is_not_listed_cannot_be_had(folder_package: Path) -> None:
    (folder_package / "notes.md").write_bytes(b"# Notes")
    with pytest.raises(PackageError, match=r"no file 'notes\.md'"):
        open_package(folder_package).file("notes.md")


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("google/tipsv2-b14", "python -m model convert google/tipsv2-b14 FOLDER"),
        ("nowhere", "there is no folder 'nowhere'; use 'bundled'"),
        (Path("no/where"), "there is no folder 'no/where'; .*python -m model convert"),
    ],
)
def test_other_sources_get_advice(source: str | Path, advice: str) -> None:
    with pytest.raises(PackageError, match=advice):
        open_package(source)


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no tipserve\.json.*model convert.*training export"):
        open_package(tmp_path)
    with pytest.raises(PackageError, match="is empty"):
        write_manifest(tmp_path, DRAFT)


def test_bundled_is_the_folder_beside_the_code(
    folder_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "BUNDLED_FOLDER", folder_package)
    assert open_package("bundled").path == folder_package
    monkeypatch.setattr(package_module, "BUNDLED_FOLDER", tmp_path / "absent")
    with pytest.raises(PackageError, match="no bundled model"):
        open_package("bundled")
