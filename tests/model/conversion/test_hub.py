"""Downloads from the hub, and errors of the hub."""

import pytest
from huggingface_hub import constants

from model.conversion.errors import HubError, HubUnreachableError
from model.conversion.hub import fetch, find_commit
from model.conversion.source import HubSource
from tests.model.conversion.hub_stand_in import COMMIT, TOKEN, Hub

B14 = HubSource("google/tipsv2-b14")
PINNED = HubSource("google/tipsv2-b14", COMMIT)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits between its attempts."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def test_weights_are_downloaded_once_and_neither_pickles_nor_code(hub: Hub) -> None:
    steps: list[str] = []
    folder = fetch(B14, steps.append)
    assert folder.name == COMMIT
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert steps == ["downloading google/tipsv2-b14"]
    fetch(B14, steps.append)
    assert len(hub.gets("model.safetensors")) == 1
    assert not hub.gets("pytorch_model.bin") + hub.gets(".py")


def test_a_revision_becomes_a_commit_by_a_request_and_a_commit_without(hub: Hub) -> None:
    assert find_commit(PINNED) == COMMIT
    assert not hub.asked
    hub.commits["v2"] = "f" * 40
    assert find_commit(B14) == COMMIT
    assert find_commit(HubSource("google/tipsv2-b14", "v2")) == "f" * 40


@pytest.mark.parametrize(
    ("name", "call"), [("model.safetensors", fetch), ("config.json", lambda *a: find_commit(a[0]))]
)
def test_a_repository_without_weights_is_refused(hub: Hub, name: str, call: object) -> None:
    del hub.files[name]
    assert callable(call)
    with pytest.raises(HubError, match=r"no config\.json and safetensors"):
        call(B14, print)


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
        find_commit(source)
    assert not isinstance(caught.value, HubUnreachableError)
    assert hub.asked


def test_a_gated_repository_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = True
    with pytest.raises(HubError, match=r"request access on .*google/tipsv2-b14.*HF_TOKEN"):
        find_commit(B14)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find_commit(B14) == COMMIT


def test_a_hub_that_fails_or_does_not_answer_is_unreachable(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = 503
    with pytest.raises(HubUnreachableError, match="answered 503 for google/tipsv2-b14"):
        find_commit(B14)
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(HubUnreachableError, match="HF_ENDPOINT"):
        find_commit(B14)
