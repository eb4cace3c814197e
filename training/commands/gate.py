"""`python -m training gate`: refuse a student that is not good enough to be served."""

import argparse
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from model.manifest import ScoreEntry
from training.evaluate.gate import Refused, judge, read_rules

HELP = "Hold an evaluated checkpoint against rules; ends with status 3 where it keeps them not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("checkpoint", type=Path, help="what `evaluate --output` has written")
    parser.add_argument(
        "--rules",
        type=Path,
        required=True,
        metavar="TOML",
        help="least values, and most points of loss against what is served, score by score",
    )


def run(options: argparse.Namespace) -> None:
    """Print every verdict.

    Raises:
        ValueError: Rules or scores cannot be read, or do not fit together.
        FileNotFoundError: One of them is not there.
        Refused: A rule is not kept.
    """
    verdicts = judge(read_rules(options.rules), _read_scores(options.checkpoint))
    for verdict in verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict.text}", flush=True)
    failed = [verdict.text for verdict in verdicts if not verdict.passed]
    if failed:
        raise Refused(f"{len(failed)} of {len(verdicts)} rules are not kept: {'; '.join(failed)}")


def _read_scores(checkpoint: Path) -> list[ScoreEntry]:
    path = checkpoint / "scores.json"
    try:
        return TypeAdapter(list[ScoreEntry]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} holds no scores that can be read: {error}") from error
