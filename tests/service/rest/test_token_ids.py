"""Token ids become the text that they encode, if the server has their vocabulary."""

import base64
from pathlib import Path

import httpx
import pytest

from service.errors import InvalidRequest
from service.rest.token_ids import TokenVocabulary
from tests.service.conftest import Serving
from tests.service.rest.conftest import client_of

TOKENS = [b"a", b" dog", "ü".encode()[:1], "ü".encode()[1:]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [b"%s %d\n" % (base64.b64encode(token), n) for n, token in enumerate(TOKENS)]
    (tmp_path / "tiny.tiktoken").write_bytes(b"".join(lines))
    return tmp_path / "tiny.tiktoken"


def test_ids_are_decoded_by_the_file(file: Path) -> None:
    vocabulary = TokenVocabulary.read(file)
    assert vocabulary.decode([0, 1, 2, 3], "input") == "a dogü"
    assert vocabulary.decode([0, 2], "input") == "a\ufffd"
    for unknown in (4, -1, 2**70):
        with pytest.raises(InvalidRequest, match=rf"input\[3\] has {unknown}"):
            vocabulary.decode([0, unknown], "input[3]")


@pytest.mark.parametrize("content", [b"a", b"YQ== x\n", b"? 1\n", b"\xff\n"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="not a vocabulary of tiktoken"):
        TokenVocabulary.read(tmp_path / "other")


async def test_ids_have_the_vectors_of_their_texts(serving: Serving, file: Path) -> None:
    async with serving(token_vocabulary=file) as server, client_of(server) as client:

        async def ask(given: object) -> httpx.Response:
            return await client.post("/v1/embeddings", json={"input": given})

        texts = (await ask(["a dog", "a"])).json()
        assert (await ask([[0, 1], [0]])).json() == texts
        assert (await ask([0, 1])).json()["data"] == texts["data"][:1]
        for given, param in (
            ([[0], [9]], "input[1]"),
            ([9], "input"),
            ([[0], []], "input[1]"),
            ([0, "a"], "input[1]"),
            ([[0], ["a"]], "input[1][0]"),
            ([[0], "a"], "input[1]"),
        ):
            refused = await ask(given)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
