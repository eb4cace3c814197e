"""Captions images with Gemini's batches, given the image, its alt text and a short caption.

A shard is one batch: a file of requests, one JSON a line, is uploaded, and the answers are read
from another file. The service bounds its own rates, and charges half of what single requests cost.
The batch's name is noted in the output folder, so that a later process waits for it instead of
sending it again.
"""

import base64
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from google import genai
from google.genai import errors, types
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from model.files import atomic_write
from training.captioning.gemini_config import GeminiConfig
from training.captioning.job import Outcome, Outcomes
from training.data.shards.sample import Sample

POLL_S = 30.0
_MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
_DONE = (types.JobState.JOB_STATE_SUCCEEDED, types.JobState.JOB_STATE_PARTIALLY_SUCCEEDED)
T = TypeVar("T")


def open_client(api_key: str, *, base_url: str | None = None) -> genai.Client:
    """Open Google's client."""
    options = types.HttpOptions(base_url=base_url, api_version="v1beta")
    return genai.Client(api_key=api_key, vertexai=False, http_options=options)


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, errors.APIError):
        return error.code in (408, 429) or error.code >= 500
    return isinstance(error, httpx2.TransportError)


@retry(
    retry=retry_if_exception(_is_temporary),
    wait=wait_random_exponential(multiplier=2, max=60),
    stop=stop_after_attempt(8),
    reraise=True,
)
def _try(call: Callable[[], T]) -> T:
    return call()


def _call(call: Callable[[], T]) -> T:
    """Call the service, again after temporary errors.

    Raises:
        ValueError: The service refuses, or stays unavailable.
    """
    try:
        return _try(call)
    except (errors.APIError, httpx2.TransportError) as error:
        raise ValueError(f"Gemini: {error}; run the same command again to resume") from error


class GeminiCaptioner:
    """Captions with Gemini, a batch for each shard."""

    shards_ahead = 7

    def __init__(self, config: GeminiConfig, client: genai.Client) -> None:
        self.source = config.source
        self._config, self._client = config, client

    def settings(self) -> Mapping[str, Any]:
        """Settings that the captions depend on."""
        return {"kind": "gemini", **asdict(self._config)}

    def start(self, samples: Iterable[Sample], note: Path) -> Outcomes:
        """Send a shard's batch, unless one is noted; the outcomes come once it is done."""
        name = note.read_text(encoding="utf-8") if note.exists() else self._send(samples)
        if name is not None:
            atomic_write(note, name)
        return self._answers(name, note)

    def _send(self, samples: Iterable[Sample]) -> str | None:
        """Upload the requests and create the batch; returns its name, or None without samples."""
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            for sample in samples:
                request = {"key": sample.key, "request": self._request(sample)}
                file.write(json.dumps(request) + "\n")
            file.flush()
            if file.tell() == 0:
                return None
            about = types.UploadFileConfig(mime_type="jsonl")
            uploaded = _call(lambda: self._client.files.upload(file=file.name, config=about))
        model, source = self._config.model, uploaded.name
        assert source is not None
        return _call(lambda: self._client.batches.create(model=model, src=source)).name

    def _request(self, sample: Sample) -> dict[str, Any]:
        """A request in the service's JSON."""
        config = self._config
        image = {
            "mimeType": _MEDIA_TYPES[sample.suffix],
            "data": base64.b64encode(sample.image).decode(),
        }
        settings = {
            "maxOutputTokens": config.max_output_tokens,
            "mediaResolution": f"MEDIA_RESOLUTION_{config.image_resolution.upper()}",
        }
        parts = [{"inlineData": image}, {"text": config.text_for(sample)}]
        return {"contents": [{"role": "user", "parts": parts}], "generationConfig": settings}

    def _answers(self, name: str | None, note: Path) -> Outcomes:
        """Wait for a batch and read its answers.

        Raises:
            ValueError: It failed; the next run sends it again.
        """
        if name is None:
            return
        while not (batch := _call(lambda: self._client.batches.get(name=name))).done:
            time.sleep(POLL_S)
        if batch.state not in _DONE or batch.dest is None or batch.dest.file_name is None:
            note.unlink()
            reason = batch.error.message if batch.error is not None else "no reason is given"
            raise ValueError(f"{name} ended as {batch.state}: {reason}; run again to send it again")
        answers = batch.dest.file_name
        content = _call(lambda: self._client.files.download(file=answers))
        yield [_outcome(json.loads(line)) for line in (content or b"").splitlines() if line.strip()]
        note.unlink()


def _outcome(line: Mapping[str, Any]) -> Outcome:
    """Turn a line of a batch's answers into an outcome."""
    key = line["key"]
    if "response" not in line:
        return Outcome(key=key, failure=f"refused: {line.get('error')}"[:300])
    response = types.GenerateContentResponse.model_validate(line["response"])
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        return Outcome(key=key, failure=f"blocked, the prompt: {feedback.block_reason.value}")
    candidate = response.candidates[0] if response.candidates else None
    reason = candidate.finish_reason if candidate is not None else None
    if reason not in (None, types.FinishReason.STOP, types.FinishReason.MAX_TOKENS):
        return Outcome(key=key, failure=f"blocked, the answer: {getattr(reason, 'value', reason)}")
    parts = (candidate.content.parts or []) if candidate and candidate.content else []
    text = "".join(part.text for part in parts if part.text and not part.thought).strip()
    return Outcome(key=key, caption=text) if text else Outcome(key=key, failure="no text")
