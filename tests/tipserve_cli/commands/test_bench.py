"""`tipserve bench` against a server over the fake runtime."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.service.conftest import Encode, Serving
from tipserve_cli.commands.bench import Answer, report
from tipserve_cli.program import DONE, FAILED, new_app

KEY = "the-key-of-this-test"


def run(*options: str) -> int:
    """Run the command in a thread, where `main` could set no signal handlers."""
    status: int = new_app()(["bench", *options])
    return status


async def test_throughput_and_the_stages_of_a_server_are_printed(
    serving: Serving, encode_image: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, key = tmp_path / "a.jpg", tmp_path / "key"
    image.write_bytes(encode_image("JPEG"))
    key.write_text(KEY)
    async with serving(api_keys=KEY) as server:
        url = f"--url=http://127.0.0.1:{server.ports['http']}"
        flags = [url, f"--image={image}", "--seconds=0.2", "--concurrency=2"]
        status = await asyncio.to_thread(run, *flags, f"--api-key-file={key}")
        printed = capsys.readouterr().out
        refused = await asyncio.to_thread(run, *flags)
    assert (status, refused) == (DONE, FAILED), printed
    assert re.match(r"[1-9]\d* requests in \d+\.\d s: \d+\.\d per second\n", printed)
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert rows[0] == ["ms", "mean", "p50", "p90", "p99"]
    assert {"request", "decode", "total"} <= {row[0] for row in rows}
    assert re.search(r"^0 requests .*, \d+ x 401$", capsys.readouterr().out, re.MULTILINE)


def test_the_report_has_the_percentiles_of_each_stage() -> None:
    answers = [
        Answer("200", float(number), f'decode;dur={number / 10}, total;dur=5;desc="x"')
        for number in range(1, 101)
    ]
    lines = list(report([*answers, Answer("429", 1.0, "")], 50.0))
    assert lines[0] == "100 requests in 50.0 s: 2.0 per second, 1 x 429"
    assert lines[2].split() == ["request", "50.50", "50.50", "90.10", "99.01"]
    assert [line.split()[0] for line in lines[3:]] == ["decode", "total"]
