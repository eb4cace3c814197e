"""A package is verified against its manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from model import package as package_module
from model.manifest import TORCH_FILE, Manifest
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
GRAPH, DATA = "onnx/vision_model.onnx", "onnx/vision_model.onnx.data"


def graph(location: str | None = "vision_model.onnx.data") -> bytes:
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
    (package / GRAPH).write_bytes(graph())
    (package / DATA).write_bytes(b"1234")
    (package / "config.json").write_bytes(b"{}")
    (tmp_path / "outside").write_bytes(b"1234")
    write_manifest(package, DRAFT)
    return package


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "may hold a pickle.*remove it") for name in ("a.bin", "b/x.PTH", ".c/x.joblib")),
        *((name, "is not in the manifest.*remove it") for name in ("a.plan", "onnx/b.onnx", "c")),
    ],
)
def test_a_pickle_or_an_unlisted_file_is_refused(folder: Path, name: str, reason: str) -> None:
    before = (folder / "tipserve.json").read_bytes()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    for verify in (True, False):
        with pytest.raises(PackageError, match=reason):
            open_package(folder, verify=verify)
    if "pickle" in reason:
        with pytest.raises(PackageError, match=reason):
            write_manifest(folder, DRAFT)
        assert (folder / "tipserve.json").read_bytes() == before


def test_only_the_weights_for_torch_may_be_missing(folder: Path) -> None:
    (folder / TORCH_FILE).write_bytes(b"1234")
    write_manifest(folder, DRAFT)
    assert open_package(folder).file(TORCH_FILE).read_bytes() == b"1234"
    (folder / TORCH_FILE).unlink()
    opened = open_package(folder)
    assert set(opened.manifest.files) == {GRAPH, DATA, "config.json"}
    with pytest.raises(PackageError, match=r"has no file 'model\.safetensors'"):
        opened.file(TORCH_FILE)
    (folder / "config.json").unlink()
    with pytest.raises(PackageError, match=r"lacks 'config\.json'"):
        open_package(folder)


def test_a_link_out_of_the_package_is_refused(folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).symlink_to(folder.parent / "outside")  # the same bytes, but another file
    for verify in (True, False):
        with pytest.raises(PackageError, match=r"leads out of the package.*cp -rL"):
            open_package(folder, verify=verify)
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
        (graph(None)[:-2], "not a complete ONNX graph"),
    ],
)
def test_a_graph_that_is_cut_or_has_weights_elsewhere_is_refused(
    folder: Path, content: bytes, complaint: str
) -> None:
    (folder / GRAPH).write_bytes(content)
    with pytest.raises(PackageError, match=complaint):
        write_manifest(folder, DRAFT)


@pytest.mark.parametrize(
    ("name", "content", "complaint", "unverified"),
    [
        ("config.json", b"[]", r"config\.json.*SHA-256.*copy the package again", None),
        (GRAPH, b"\xff" * len(graph()), "SHA-256", "ONNX graph"),  # never parsed as a graph
        ("config.json", b"{", "has 1 bytes, its manifest says 2", "has 1 bytes"),
        ("config.json", None, r"lacks 'config\.json'.*export it again", "lacks"),
    ],
)
def test_a_changed_file_is_found(
    folder: Path, name: str, content: bytes | None, complaint: str, unverified: str | None
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(PackageError, match=complaint):
        open_package(folder)
    if unverified is None:
        assert open_package(folder, verify=False).manifest.name == "tiny"
    else:
        with pytest.raises(PackageError, match=unverified):
            open_package(folder, verify=False)


ENTRY = {"sha256": "0" * 64, "size_bytes": 2}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda m: json.dumps(m | {"pickle": "weights.bin"}),
            r"(?s)export the model again.*pickle",
        ),
        (lambda m: json.dumps(m | {"files": {}}), "lists no files"),
        (lambda m: json.dumps(m | {"files": m["files"] | {"config.json": ENTRY}}), "SHA-256"),
        (lambda m: json.dumps(m | {"files": {"../outside": ENTRY}}), "inside the package"),
        (lambda _: "{", "not a manifest"),
        (lambda _: " " * (MAX_MANIFEST_BYTES + 1), "at most 4194304 are accepted"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], str], complaint: str
) -> None:
    path = folder / "tipserve.json"
    path.write_text(change(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(PackageError, match=complaint):
        open_package(folder)


def test_a_source_that_is_no_package_is_refused(tmp_path: Path) -> None:
    for source in ("google/tipsv2-b14", "nowhere", Path("no/where")):
        with pytest.raises(PackageError, match=r"python -m model convert|there is no folder"):
            open_package(source)
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
