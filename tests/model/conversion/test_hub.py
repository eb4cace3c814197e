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

# A download speaks now and then, and draws nothing.


def test_bytes_are_told_at_times_and_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
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


# What is downloaded, what is not, and what is said when it fails; against a hub of our own.

B14 = HubSource("google/tipsv2-b14")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_weights_come_and_neither_pickles_nor_code(hub: Hub) -> None:
    steps: list[str] = []
    fetched = fetch(B14, steps.append)
    assert fetched.commit == COMMIT
    assert names(fetched.folder) == {
        *("config.json", "model.safetensors", "tokenizer.json", "README.md")
    }
    assert (fetched.folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert steps == ["downloading google/tipsv2-b14"]
    assert not hub.gets("pytorch_model.bin") + hub.gets(".py")


def test_nothing_is_downloaded_twice(hub: Hub) -> None:
    fetch(B14, lambda _: None)
    fetch(B14, lambda _: None)
    assert len(hub.gets("model.safetensors")) == 1


def test_a_revision_is_the_commit_that_the_hub_says(hub: Hub) -> None:
    hub.commits["v2"] = "f" * 40
    assert ask_commit(B14) == COMMIT
    assert ask_commit(HubSource("google/tipsv2-b14", "v2")) == "f" * 40


def test_a_commit_is_one_without_asking(hub: Hub) -> None:
    assert ask_commit(HubSource("google/tipsv2-b14", COMMIT)) == COMMIT
    assert not hub.asked


def test_a_transfer_that_breaks_goes_on_where_it_stopped(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.break_after = 70_000
    fetched = fetch(B14, lambda _: None)
    assert (fetched.folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    first, second = hub.gets("model.safetensors")
    assert (first, second) == (None, "bytes=70000-")


def test_an_interrupted_download_is_completed_by_the_next(hub: Hub) -> None:
    hub.broken.add("model.safetensors")
    with pytest.raises(HubUnreachableError, match="answered 500"):
        fetch(B14, lambda _: None)
    assert downloaded_commit(B14) is None
    hub.broken.clear()
    assert fetch(B14, lambda _: None).commit == COMMIT
    assert len(hub.gets("config.json")) == 1
    assert downloaded_commit(B14) == COMMIT


def test_a_repository_without_safetensors_is_refused(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(HubError, match=r"no config\.json and safetensors"):
        fetch(B14, lambda _: None)


def test_what_was_downloaded_is_found_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(B14, lambda _: None).folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError):
        ask_commit(B14)
    assert downloaded_commit(B14) == COMMIT
    hub.asked.clear()
    assert fetch(HubSource(B14.repository, COMMIT), lambda _: None).folder == folder
    assert not hub.asked


def test_offline_with_nothing_here_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert downloaded_commit(B14) is None
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE forbids"):
        fetch(B14, lambda _: None)
    assert not hub.asked


def test_an_unknown_repository_is_told_from_an_unknown_revision(hub: Hub) -> None:
    for unknown in (HubSource("google/tips-v2"), HubSource("google/tipsv2-b14", "v9")):
        with pytest.raises(HubError) as caught:
            ask_commit(unknown)
        assert not isinstance(caught.value, HubUnreachableError)
        text = str(caught.value)
        assert ("no folder of that name here" in text) is (unknown.revision == "main")
        assert ("no revision 'v9'" in text) is (unknown.revision == "v9")
    assert hub.asked


def test_a_gated_repository_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(HubError, match=r"request access on .*google/tipsv2-b14.*HF_TOKEN"):
        ask_commit(B14)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert ask_commit(B14) == COMMIT


def test_a_hub_that_fails_may_be_asked_later(hub: Hub) -> None:
    hub.status = 503
    with pytest.raises(HubUnreachableError, match="answered 503 for google/tipsv2-b14; try again"):
        ask_commit(B14)


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    del hub
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubUnreachableError, match="check the network and HF_ENDPOINT"):
        ask_commit(B14)


def test_a_full_disk_is_said_in_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(HubError, match=r"hub is too full for google/tipsv2-b14; .*HF_HOME"):
        fetch(B14, lambda _: None)
    assert not hub.asked


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"huggingface_hub.*tipserve\[convert\]"):
        ask_commit(B14)
    assert downloaded_commit(B14) is None
