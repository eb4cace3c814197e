"""A package is verified against its manifest."""

import json
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from model import package as package_module
from model.manifest import Manifest
from model.package import MAX_MANIFEST_BYTES, PackageError, open_package, write_manifest

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


VISION_DATA = "vision_model.onnx.data"
VISION = ("onnx/vision_model.onnx", f"onnx/{VISION_DATA}")


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
        *("pytorch_model.bin", "deep/x.pth", "x.PICKLE", "x.joblib", ".hidden/x.pt"),
    ],
)
def test_a_pickle_is_refused(folder: Path, name: str, verify: bool) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(PackageError, match=r"may hold a pickle.*remove it"):
        open_package(folder, verify=verify)


def test_a_pickle_is_not_packaged(folder: Path) -> None:
    (folder / "heads.pt").touch()
    before = (folder / "tipserve.json").read_bytes()
    with pytest.raises(PackageError, match="may hold a pickle"):
        write_manifest(folder, DRAFT)
    assert (folder / "tipserve.json").read_bytes() == before


@pytest.mark.parametrize("name", ["later.plan", "onnx/other.onnx", "modeling.py", "x"])
def test_an_unlisted_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(PackageError, match=r"is not in the manifest.*remove it"):
        open_package(folder)


def test_harmless_unlisted_files_are_allowed(folder: Path) -> None:
    for name in (".gitattributes", ".cache/huggingface/x.metadata", "NOTES.md", "LICENSE", "a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "lost+found").mkdir()
    assert open_package(folder).manifest.name == "tiny"


@pytest.mark.parametrize("verify", [True, False])
def test_a_link_out_of_the_package_is_refused(folder: Path, verify: bool) -> None:
    data = folder / "onnx" / "vision_model.onnx.data"
    data.unlink()
    data.symlink_to(folder.parent / "outside")  # the same bytes, but another file
    with pytest.raises(PackageError, match=r"leads out of the package.*cp -rL"):
        open_package(folder, verify=verify)


def test_a_folder_that_is_a_link_out_is_refused(folder: Path) -> None:
    (folder / "onnx").rename(folder.parent / "onnx")
    (folder / "onnx").symlink_to(folder.parent / "onnx")
    with pytest.raises(PackageError, match="is not in the manifest"):
        open_package(folder)


def test_links_inside_the_package_are_followed(folder: Path) -> None:
    # As Kubernetes mounts a volume: hidden folders, and links to what is in them.
    (folder / "..2026").mkdir()
    (folder / "config.json").rename(folder / "..2026" / "config.json")
    (folder / "..data").symlink_to("..2026")
    (folder / "config.json").symlink_to("..data/config.json")
    (folder.parent / "latest").symlink_to("package")
    opened = open_package(folder.parent / "latest")
    assert opened.file("config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (graph("../../outside"), r"keeps weights in '.*export the model again"),
        (graph("/etc/passwd"), "keeps weights in '"),
        (graph(""), "keeps weights in '"),
        (graph("absent.data"), r"'absent\.data', which the manifest does not list"),
        (graph()[:-2], "not a complete ONNX graph"),
    ],
)
def test_a_graph_that_is_cut_or_has_weights_elsewhere_is_refused(
    folder: Path, content: bytes, complaint: str
) -> None:
    (folder / "onnx" / "vision_model.onnx").write_bytes(content)
    with pytest.raises(PackageError, match=complaint):
        write_manifest(folder, DRAFT)


def test_writing_the_manifest_again_changes_nothing(folder: Path) -> None:
    (folder / "onnx" / "vision_model.onnx").write_bytes(graph("./vision_model.onnx.data"))
    for _ in range(2):
        write_manifest(folder, DRAFT)
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.json", "onnx", "tipserve.json"}
    opened = open_package(str(folder))
    assert set(opened.manifest.files) == {"config.json", *VISION}
    assert opened == write_manifest(folder, DRAFT)
    assert opened.file("config.json").read_bytes() == b"{}"
    with pytest.raises(PackageError, match=r"no file 'notes\.md'"):
        opened.file("notes.md")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", b"[]", r"config\.json.*SHA-256.*copy the package again"),
        (VISION[0], b"\xff" * len(graph(VISION_DATA)), "SHA-256"),  # never parsed as a graph
        ("config.json", b"{", "has 1 bytes, its manifest says 2"),
        ("config.json", None, r"lacks 'config\.json'.*export it again"),
    ],
)
def test_a_changed_file_is_found(
    folder: Path, name: str, content: bytes | None, complaint: str
) -> None:
    size_bytes = (folder / name).stat().st_size
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(PackageError, match=complaint):
        open_package(folder)
    if name == "config.json" and content is not None and len(content) == size_bytes:
        assert open_package(folder, verify=False).manifest.name == "tiny"
    else:  # sizes and graphs are checked without hashing
        with pytest.raises(PackageError, match=f"{complaint}|ONNX graph"):
            open_package(folder, verify=False)


ENTRY = {"sha256": "0" * 64, "size_bytes": 2}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pickle": "weights.bin"}, r"(?s)export the model again.*pickle"),
        ({"files": {}}, "lists no files"),
        ({"files": {"config.json": ENTRY}}, "SHA-256"),
        ({"files": {"../outside": ENTRY}}, "inside the package"),
        (None, "not a manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, changes: dict[str, Any] | None, complaint: str
) -> None:
    path = folder / "tipserve.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if changes and changes.get("files"):
        changes = {"files": {**document["files"], **changes["files"]}}
    text = "{" if changes is None else json.dumps(document | changes)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PackageError, match=complaint):
        open_package(folder)


def test_a_huge_manifest_is_refused_unread(folder: Path) -> None:
    with (folder / "tipserve.json").open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(PackageError, match="at most 4194304 are accepted"):
        open_package(folder)


@pytest.mark.parametrize("source", ["google/tipsv2-b14", "nowhere", Path("no/where")])
def test_a_source_that_is_no_folder_is_refused(source: str | Path) -> None:
    with pytest.raises(PackageError, match=r"python -m model convert|there is no folder"):
        open_package(source)


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no tipserve\.json.*model convert.*training export"):
        open_package(tmp_path)
    with pytest.raises(PackageError, match="is empty"):
        write_manifest(tmp_path, DRAFT)


def test_bundled_opens_the_bundled_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(package_module.BUNDLED, "bundled", folder)
    assert open_package("bundled").path == folder
    monkeypatch.setitem(package_module.BUNDLED, "bundled", tmp_path / "absent")
    with pytest.raises(PackageError, match="no model 'bundled'"):
        open_package("bundled")
