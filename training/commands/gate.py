"""`python -m training gate`: refuse a student that is not good enough to be served."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from model.manifest import ScoreEntry
from model.scores.gate import Refused, judge, read_rules
from training.options import argument, option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    checkpoint: Path = argument("folder written by `evaluate --output`")
    rules: Path = option(
        "TOML file: minimum values and maximum losses against the served package, per score"
    )


def run(options: Options) -> None:
    """Print every verdict.

    Raises:
        ValueError: Rules or scores are malformed, or do not match.
        FileNotFoundError: A file does not exist.
        Refused: The checkpoint fails a rule.
    """
    scores = options.checkpoint / "scores.json"
    try:
        entries = TypeAdapter(list[ScoreEntry]).validate_json(scores.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{scores} holds no valid scores: {error}") from error
    verdicts = judge(read_rules(options.rules), entries)
    for verdict in verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict.text}", flush=True)
    failed = [verdict.text for verdict in verdicts if not verdict.passed]
    if failed:
        raise Refused(f"{len(failed)} of {len(verdicts)} rules failed: {'; '.join(failed)}")
