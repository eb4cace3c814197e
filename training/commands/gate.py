"""`python -m training gate`: refuse a student that is not good enough to be served."""

import argparse
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from model.manifest import ScoreEntry
from model.scores.gate import Refused, judge, read_rules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("checkpoint", type=Path, help="folder written by `evaluate --output`")
    parser.add_argument(
        "--rules",
        type=Path,
        required=True,
        metavar="TOML",
        help="minimum values and maximum losses against the served package, per score",
    )


def run(options: argparse.Namespace) -> None:
    """Print every verdict.

    Raises:
        ValueError: Rules or scores are malformed, or do not match.
        FileNotFoundError: A file does not exist.
        Refused: The checkpoint fails a rule.
    """
    verdicts = judge(read_rules(options.rules), _read_scores(options.checkpoint))
    for verdict in verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict.text}", flush=True)
    failed = [verdict.text for verdict in verdicts if not verdict.passed]
    if failed:
        raise Refused(f"{len(failed)} of {len(verdicts)} rules failed: {'; '.join(failed)}")


def _read_scores(checkpoint: Path) -> list[ScoreEntry]:
    path = checkpoint / "scores.json"
    try:
        return TypeAdapter(list[ScoreEntry]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} holds no valid scores: {error}") from error
