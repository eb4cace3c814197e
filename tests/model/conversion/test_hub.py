"""Downloads from the hub, and errors of the hub."""

import errno
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from model.conversion import errors as errors_module
from model.conversion.errors import HubError, HubUnreachableError, MissingExtraError
from model.conversion.hub import EVERY_S, ask_commit, downloaded_commit, fetch, progress_bar
from model.conversion.source import HubSource
from tests.model.conversion.hub_stand_in import COMMIT, TOKEN, Hub

B14 = HubSource("google/tipsv2-b14")


def test_progress_is_reported_in_lines_and_not_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    now = [0.0]
    kind = progress_bar(said.append, of="google/tipsv2-b14", clock=lambda: now[0])
    with kind(total=4_000_000, unit="B", mininterval=0) as bar:
        bar.update(1_000_000)
        now[0] += EVERY_S
        bar.update(1_000_000)
        bar.update(1_000_000)
    with kind(total=3, desc="Fetching 3 files", mininterval=0) as bar:
        now[0] += EVERY_S
        bar.update(3)
    assert said == ["downloaded 2 of 4 MB of google/tipsv2-b14"]
    assert capfd.readouterr() == ("", "")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_weights_are_downloaded_once_and_neither_pickles_nor_code(hub: Hub) -> None:
    steps: list[str] = []
    folder = fetch(B14, steps.append)
    assert folder.name == COMMIT
    assert names(folder) == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert steps == ["downloading google/tipsv2-b14"]
    fetch(B14, steps.append)
    assert len(hub.gets("model.safetensors")) == 1
    assert not hub.gets("pytorch_model.bin") + hub.gets(".py")


def test_a_revision_becomes_a_commit_by_a_request_and_a_commit_without(hub: Hub) -> None:
    assert ask_commit(HubSource("google/tipsv2-b14", COMMIT)) == COMMIT
    assert not hub.asked
    hub.commits["v2"] = "f" * 40
    assert ask_commit(B14) == COMMIT
    assert ask_commit(HubSource("google/tipsv2-b14", "v2")) == "f" * 40


def test_a_broken_transfer_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.break_after = 70_000
    folder = fetch(B14, lambda _: None)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    first, second = hub.gets("model.safetensors")
    assert (first, second) == (None, "bytes=70000-")


def test_an_interrupted_download_is_completed_later(hub: Hub) -> None:
    hub.broken.add("model.safetensors")
    with pytest.raises(HubUnreachableError, match="answered 500"):
        fetch(B14, lambda _: None)
    assert downloaded_commit(B14) is None
    hub.broken.clear()
    assert fetch(B14, lambda _: None).name == COMMIT
    assert len(hub.gets("config.json")) == 1
    assert downloaded_commit(B14) == COMMIT


def test_a_repository_without_safetensors_is_refused(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(HubError, match=r"no config\.json and safetensors"):
        fetch(B14, lambda _: None)


def test_a_complete_download_is_found_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(B14, lambda _: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError):
        ask_commit(B14)
    assert downloaded_commit(B14) == COMMIT
    hub.asked.clear()
    assert fetch(HubSource(B14.repository, COMMIT), lambda _: None) == folder
    assert not hub.asked


def test_an_incomplete_download_is_an_error_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert downloaded_commit(B14) is None
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE forbids"):
        fetch(B14, lambda _: None)
    assert not hub.asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HubSource("google/tips-v2"), "no folder of that name here"),
        (HubSource("google/tipsv2-b14", "v9"), "no revision 'v9'"),
    ],
)
def test_an_unknown_repository_or_revision_is_named(
    hub: Hub, source: HubSource, message: str
) -> None:
    with pytest.raises(HubError, match=message) as caught:
        ask_commit(source)
    assert not isinstance(caught.value, HubUnreachableError)
    assert hub.asked


def test_a_gated_repository_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(HubError, match=r"request access on .*google/tipsv2-b14.*HF_TOKEN"):
        ask_commit(B14)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert ask_commit(B14) == COMMIT


def test_a_hub_that_fails_or_does_not_answer_is_unreachable(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = 503
    with pytest.raises(HubUnreachableError, match="answered 503 for google/tipsv2-b14"):
        ask_commit(B14)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubUnreachableError, match="HF_ENDPOINT"):
        ask_commit(B14)


def test_a_full_disk_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(HubError, match=r"hub is too full for google/tipsv2-b14; .*HF_HOME"):
        fetch(B14, lambda _: None)
    assert not hub.asked


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"huggingface_hub.*tipserve\[convert\]"):
        ask_commit(B14)
    assert downloaded_commit(B14) is None
