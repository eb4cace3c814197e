"""Reads what Gemini's service answers: a caption, a refusal, an overload, or the end of the job.

| answer | becomes |
| --- | --- |
| text | a caption, also where the service cut it at the token limit |
| no text, or blocked for safety, recitation, ... | `Failure`, kept: another try changes nothing |
| 400 and other 4xx for one request | `Failure`, kept |
| 408, 429, 5xx, no connection, no answer in time | `Unavailable`: the request is tried again |
| 429 for a day's quota, or with a long pause asked for | `JobStopped` |
| a wrong key, no permission, an unknown model | `JobStopped` |
"""

import re
from collections.abc import Iterator
from typing import Any

from google.genai import errors, types

from training.captioning.outcome import Failure, JobStopped, Outcome, Usage
from training.captioning.retry import Unavailable

_SECONDS = re.compile(r"^(\d+(?:\.\d+)?)s$")
_MAX_MESSAGE = 300


def read_answer(key: str, response: types.GenerateContentResponse) -> Outcome:
    """Make an outcome of an answer that arrived."""
    usage = _usage(response.usage_metadata)
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        failure = Failure(kind="blocked", message=f"the prompt: {feedback.block_reason.value}")
        return Outcome(key=key, failure=failure, usage=usage)
    candidate = response.candidates[0] if response.candidates else None
    reason = candidate.finish_reason if candidate is not None else None
    if reason not in (None, types.FinishReason.STOP, types.FinishReason.MAX_TOKENS):
        failure = Failure(kind="blocked", message=f"the answer: {getattr(reason, 'value', reason)}")
        return Outcome(key=key, failure=failure, usage=usage)
    parts = (candidate.content.parts or []) if candidate and candidate.content else []
    text = "".join(part.text for part in parts if part.text and not part.thought).strip()
    if not text:
        said = "nothing" if reason is None else str(reason.value)
        failure = Failure(kind="empty", message=f"no text; the service gave as its reason: {said}")
        return Outcome(key=key, failure=failure, usage=usage)
    return Outcome(key=key, caption=text, usage=usage)


def read_error(error: errors.APIError, *, longest_pause_s: float) -> Failure:
    """Make a failure of one request's error.

    Raises:
        Unavailable: It may pass.
        JobStopped: It will not, and every other request would meet it too.
    """
    message = f"{error.code} {error.status}: {error.message}"[:_MAX_MESSAGE]
    if error.code == 429:
        pause_s = asked_pause_s(error)
        if pause_s > longest_pause_s or _is_daily(error):
            raise JobStopped(
                f"stopped, because the account's quota is used up ({message}); start the same "
                "command again when there is quota, it goes on from here"
            )
        raise Unavailable(message, asked_s=pause_s)
    if error.code == 408 or error.code >= 500:
        raise Unavailable(message, asked_s=min(asked_pause_s(error), longest_pause_s))
    reasons = {detail.get("reason") for detail in _details(error)}
    if error.code in (401, 402, 403, 404) or "API_KEY_INVALID" in reasons:
        raise JobStopped(
            f"stopped, because the service refuses every request ({message}); see to the key, its "
            "permissions and the name of the model, and start the same command again"
        )
    return Failure(kind="refused", message=message)


def asked_pause_s(error: errors.APIError) -> float:
    """Return the pause in seconds that an error asks for, in its body or header; 0 for none."""
    pauses = [0.0]
    for detail in _details(error):
        match = _SECONDS.match(str(detail.get("retryDelay", "")))
        if match:
            pauses.append(float(match.group(1)))
    header = getattr(error.response, "headers", None) or {}
    after = str(header.get("retry-after", ""))
    if after.isdecimal():  # the other form, a date, is not used by this service
        pauses.append(float(after))
    return max(pauses)


def _is_daily(error: errors.APIError) -> bool:
    return any(
        "PerDay" in str(violation.get("quotaId", ""))
        for detail in _details(error)
        for violation in detail.get("violations", [])
    )


def _details(error: errors.APIError) -> Iterator[dict[str, Any]]:
    document = error.details if isinstance(error.details, dict) else {}
    inner = document.get("error", document)
    for detail in (inner.get("details") or []) if isinstance(inner, dict) else []:
        if isinstance(detail, dict):
            yield detail


def _usage(metadata: types.GenerateContentResponseUsageMetadata | None) -> Usage:
    if metadata is None:
        return Usage()
    output = (metadata.candidates_token_count or 0) + (metadata.thoughts_token_count or 0)
    return Usage(input_tokens=metadata.prompt_token_count or 0, output_tokens=output)
