"""Turns the settings of captioning jobs into options of a command line, and back.

Defaults stand in the settings alone; an option that is not given leaves its setting's.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line says of one setting."""

    help: str
    type: type = str
    choices: tuple[str, ...] | None = None


PALIGEMMA: Mapping[str, Option] = {
    "model": Option("folder or hub name of a checkpoint with its processor"),
    "prompt": Option("what the model is asked"),
    "max_tokens": Option("longest answer", int),
    "temperature": Option("0 takes the likeliest token; above it, tokens are drawn", float),
    "seed": Option("of the draws", int),
    "batch_size": Option("images at a time", int),
    "precision": Option("of weights and activations", str, ("auto", "bfloat16", "float32")),
    "device": Option('"auto", "cpu", "cuda", "cuda:1", ...'),
    "source": Option("what the captions are called"),
}
GEMINI: Mapping[str, Option] = {
    "model": Option("the service's name of the model"),
    "prompt": Option("what is asked; {words} becomes the number of words"),
    "max_words": Option("what the prompt asks for", int),
    "max_output_tokens": Option("where the service cuts an answer", int),
    "expected_output_tokens": Option("an answer's length in the estimate", int),
    "alt_source": Option("caption source given as the alt text"),
    "draft_source": Option("caption source given as the short caption"),
    "image_resolution": Option("how finely it looks", str, ("low", "medium", "high")),
    "image_tokens": Option("what an image is counted with in the estimate", int),
    "temperature": Option("left to the service where not given", float),
    "seed": Option("sent with every request", int),
    "thinking": Option("how long it reasons", str, ("minimal", "low", "medium", "high")),
    "source": Option("what the captions are called"),
}
LIMITS: Mapping[str, Option] = {
    "requests_per_minute": Option("the account's limit", int),
    "tokens_per_minute": Option("the account's limit of input tokens", int),
    "max_in_flight": Option("requests at a time", int),
    "timeout_s": Option("when an answer counts as lost", float),
    "longest_pause_s": Option("stop when the service asks for a longer pause", float),
    "max_attempts": Option("tries of one request", int),
}
JOB: Mapping[str, Option] = {
    "max_failure_share": Option("stop when more of the samples fail", float),
    "free_failures": Option("this many failures never stop the job", int),
}
CLEANING: Mapping[str, Option] = {
    "max_characters": Option("where a caption is cut", int),
}


def add_options(parser: argparse.ArgumentParser, *tables: Mapping[str, Option]) -> None:
    """Declare an option for each setting of some tables."""
    for table in tables:
        for name, option in table.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=option.type,
                choices=option.choices,
                help=option.help,
                default=None,
            )


def given(options: argparse.Namespace, table: Mapping[str, Option]) -> dict[str, Any]:
    """Return those settings of a table that the command line gives."""
    values = {name: getattr(options, name) for name in table}
    return {name: value for name, value in values.items() if value is not None}
