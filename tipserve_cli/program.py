"""The console script `tipserve`: parse arguments, run a command, report errors.

A command is imported when it runs, so that help is fast and needs no optional package.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal, NamedTuple

from cyclopts import (
    App,
    ArgumentCollection,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownOptionError,
)
from cyclopts.completion.install import create_install_completion_command
from rich.console import Console

# Exit statuses. After 130 (SIGINT) and 143 (SIGTERM) the same command continues resumable jobs.
DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
DONE_WITH_SKIPPED_IMAGES: Final = 3
INTERRUPTED: Final = 130
TERMINATED: Final = 143
MEANINGS: Final = (
    "Exit status: 0 success; 1 failure, with a message on standard error; 2 wrong command line; "
    "3 success, but some images were skipped; 130 or 143 interrupted."
)


class Help(NamedTuple):
    """The help of a command: a paragraph for the list of commands, further ones, examples."""

    text: str
    examples: tuple[str, ...] = ()


COMMANDS: Final = {
    "segment": Help(
        "Write masks of images for named classes, or the instances of many as COCO.\n\n"
        "A mask has the image's size: k for the k-th class, 0 for background. With a folder as "
        "output each image becomes a PNG there, with its own name. For several images, run an "
        "interrupted command again to continue where it stopped.",
        (
            'photo.jpg --classes "dog, grass" -o mask.png',
            'photo.jpg --classes "dog, grass" --format overlay -o seen.png',
            'photos/ --classes "dog, grass" --format overlay -o seen/',
            'photos/ --classes "dog, cat" --background-threshold 0.1 --format coco -o found.json',
            "photo.jpg --classes dog -o mask.npy --url grpc://localhost:8001",
        ),
    ),
    "embed": Help(
        "Write the embeddings of many images as Parquet, or as an archive of NumPy.\n\n"
        "One row for each image with key, source, height, width and the outputs. Images that "
        "cannot be read are skipped and listed in a second file. Run an interrupted command again "
        "to continue where it stopped.",
        (
            "photos/ -o photos.npz",
            "'photos/**/*.jpg' -o photos.parquet --outputs cls1,patches --dtype float16",
            "photos/ -o photos.parquet --url grpc://localhost:8001",
            "shards/ -o embeddings/ --ray --workers 8 --gpus-per-worker 1",
            "rows.parquet -o out.parquet --image-column image --key-column id",
        ),
    ),
    "classify": Help(
        "Rank named classes for an image, or for many as CSV or JSON lines.\n\n"
        "One image prints a table. Files and folders need --output; run an interrupted command "
        "again to continue where it stopped.",
        ('photo.jpg --classes "dog, cat"', "photos/ --classes-file names.txt -o found.csv --top 1"),
    ),
    "features": Help(
        "Write the patch embeddings of an image, or draw them.\n\n"
        "A .npy file holds float32 [rows, columns, width]. A .png file shows similar patches in "
        "similar colours.",
        (
            "photo.jpg -o patches.npy",
            "photo.jpg -o colours.png",
            "photo.jpg -o g.png --kind groups",
        ),
    ),
    "depth": Help(
        "Write the depth of images: colours to look at, or numbers.\n\n"
        "With a folder as output each image becomes a file there, with its own name. The model "
        "needs a head for depth.",
        (
            "photo.jpg -o depth.png",
            "photo.jpg -o metres.npy",
            "photos/ -o depths/ --format millimetres",
        ),
    ),
    "normals": Help(
        "Write the surface normals of images: colours to look at, or numbers.\n\n"
        "With a folder as output each image becomes a file there, with its own name. The model "
        "needs a head for normals.",
        ("photo.jpg -o normals.png", "photos/ -o normals/ --format npy"),
    ),
    "texts": Help(
        "Write the embeddings of texts: JSON, Parquet, or float32 [texts, width] as .npy.",
        ('"a dog" "a cat"', "--file lines.txt -o texts.npy", "- -o texts.parquet < lines.txt"),
    ),
    "search": Help(
        "Find the images of an embedded folder that are most similar to words or to an image.",
        (
            'photos.npz "a red car" --save found/',
            "photos.parquet --image photo.jpg --top 20 --json",
        ),
    ),
    "models": Help(
        "List the models of a server, or describe the model that would be loaded here.",
        ("", "--url http://localhost:8000", "--url grpc://localhost:8001 --json"),
    ),
    "evaluate": Help(
        "Score a model on labelled images, and write a report.\n\n"
        "Give one or more sets. The folder of the report has a page (report.html), the scores as "
        "JSON, and the model's answers: run an interrupted command again to continue where it "
        "stopped.",
        (
            "--segmentation images/ masks/ names.txt",
            "--classification photos/ --retrieval captioned/",
            "--knn photos/ --url grpc://localhost:8001 -o report",
            "--segmentation images/ masks/ names.txt -o new --against evaluation",
        ),
    ),
    "bench": Help(
        "Load a running server, and print throughput and latency by stage.\n\n"
        "Sends an image again and again. Prints the requests per second, and the milliseconds of "
        "each stage: `request` is what this client sees, the others are the server's own "
        "(`Server-Timing`).",
        (
            "--url http://localhost:8000",
            "--url http://localhost:8000 --image photo.jpg --concurrency 32 --seconds 30",
        ),
    ),
    "connect": Help(
        "Connect a tool for labelling, or list the tools.\n\n"
        "Runs what Label Studio or Roboflow's client calls, or says what CVAT loads.",
        (
            "",
            "label-studio --label-studio-url http://localhost:8080 --port 9090",
            "roboflow --url grpc://localhost:8001 --host 0.0.0.0",
            "cvat",
        ),
    ),
    "convert": Help(
        "Convert released weights to a model package in a folder.\n\n"
        "The same as python -m model convert, which has further commands.",
        (
            "google/tipsv2-b14 packages/tipsv2-b14",
            "packages/tipsv2-b14 packages/tipsv2-b14 --precision int8",
        ),
    ),
    "show": Help(
        "Verify and describe model packages.\n\nThe same as python -m model show.",
        ("bundled", "packages/tipsv2-b14"),
    ),
}
# Functions of commands that are not `run` of the module with their name.
FUNCTIONS: Final = {
    "depth": "tipserve_cli.commands.maps:depth",
    "normals": "tipserve_cli.commands.maps:normals",
    "convert": "model.conversion.commands:convert",
    "show": "model.conversion.commands:show",
}
SERVE: Final = "serve"
SERVE_HELP: Final = "Run the server; the same as python -m service."
RESUMABLE: Final = ("embed", "segment", "classify", "depth", "normals", "evaluate")
# The extra that installs an optional package.
EXTRAS: Final = {"pyarrow": "cli", "ray": "bulk", "sklearn": "evaluate"}
SUMMARY: Final = (
    "Embeds, segments, classifies and finds images, with a model in this process or on a server."
)
EXAMPLES: Final = (
    'segment photo.jpg --classes "dog, grass" -o mask.png',
    "embed photos/ -o photos.npz",
    'search photos.npz "a red car"',
    "embed photos/ -o photos.parquet --url http://localhost:8000",
    "serve --model google/tipsv2-b14",
    "--install-completion",
)
Execute = Callable[[str, list[str]], object]


class Interrupted(BaseException):
    """A signal asks the command to stop."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def new_app() -> App:
    """Make the command line of every command."""
    app = App(
        name="tipserve",
        help=SUMMARY,
        help_epilogue=_epilogue("tipserve", EXAMPLES),
        help_format="plaintext",
        version=_version,
        default_parameter=Parameter(negative=(), allow_repeating=True),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )
    app.command(_completion_of(app), name="--install-completion")
    for name, (text, examples) in COMMANDS.items():
        app.command(
            FUNCTIONS.get(name, f"tipserve_cli.commands.{name}:run"),
            name=name,
            help=text,
            help_epilogue=_epilogue(f"tipserve {name}", examples),
        )
    # Only for help and completion: `main` replaces the process by the server.
    app.command(_serve, name=SERVE, help=SERVE_HELP)
    return app


def _completion_of(app: App) -> Callable[..., None]:
    def install(
        *,
        shell: Literal["bash", "zsh", "fish"] | None = None,
        output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    ) -> None:
        """Install completion for bash, zsh or fish.

        Args:
            shell: Default: that of this terminal.
            output: Write this file only. Default: the shell's own, loaded by its start file.
        """
        write = create_install_completion_command(app.install_completion, output is None)
        write(shell=shell, output=output)

    return install


def _serve(*options: str) -> None:
    """Serve; `tipserve serve --help` is the help of the server itself."""


def _epilogue(program: str, examples: Sequence[str]) -> str:
    lines = "".join(f"\n  {program} {example}".rstrip() for example in examples)
    return f"Examples:{lines}\n\n{MEANINGS}"


def _version() -> str:
    return f"tipserve {version('tipserve')}"


def main(arguments: Sequence[str] | None = None, execute: Execute = os.execv) -> int:
    """Run a command; returns the exit status.

    Args:
        arguments: The command line without the program name; None is that of this process.
        execute: Replaces this process by another program.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    app = new_app()
    if not given:
        app.help_print([], console=Console(stderr=True))
        return WRONG_USAGE
    if given[0] == SERVE:
        # No module of the working folder may hide one of ours, unless it is a checkout's.
        is_own_folder = os.path.samefile(".", Path(__file__).parents[1])
        safe = [] if is_own_folder else ["-P"]
        execute(sys.executable, [sys.executable, *safe, "-m", "service", *given])
        return DONE
    return _run(app, given)


def _run(app: App, arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments[0] in COMMANDS else ""
    program = f"tipserve {command}".rstrip()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    handlers = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        # Help and the version return None.
        return app(arguments) or DONE
    except CycloptsError as error:
        if isinstance(error, UnknownOptionError) and command:
            # `reject_options` does not know the options that its command has.
            error.argument_collection = app[command].assemble_argument_collection()
        print(f"{program}: {_problem(error)}\n{_help_of(program)}", file=sys.stderr)
        return WRONG_USAGE
    except Interrupted as interrupted:
        hint = " Run the same command again to continue." if command in RESUMABLE else ""
        print(f"{program}: interrupted.{hint}", file=sys.stderr)
        return interrupted.status
    except Exception as error:
        from tipserve_cli.engine import UsageError  # noqa: PLC0415 - help does not need it

        message = _message(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        if not isinstance(error, UsageError):
            return FAILED
        print(_help_of(program), file=sys.stderr)
        return WRONG_USAGE
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _help_of(program: str) -> str:
    return f"Run `{program} --help` for help."


def _problem(error: CycloptsError) -> str:
    """The error; an option that is not given at all is missing, and lacks no argument."""
    text = str(error)
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        return text
    given = error.keyword or any(token.keyword for token in error.argument.tokens)
    return text if given or "Did you mean" in text else f"{error.argument.name} is missing."


def _message(error: Exception) -> str | None:
    """What a user can do about an error; None for an error of ours."""
    from model.installation import install  # noqa: PLC0415
    from model.labelled.sets import SetError  # noqa: PLC0415 - help does not need it
    from model.stores import StoreError  # noqa: PLC0415
    from tipserve_cli.engine import UserError  # noqa: PLC0415
    from tipserve_client import TipserveError  # noqa: PLC0415

    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return None
        return f"{error.name} is not installed. Run: {install(extra)}"
    if isinstance(error, (SetError, StoreError, TipserveError, UserError)):
        return str(error)
    if isinstance(error, OSError):
        # The errors of pyarrow have no file name, and some have no number and so no `strerror`.
        reason = error.strerror or str(error)
        return f"{reason}." if error.filename is None else f"{error.filename}: {reason}."
    return None


def _interrupt(number: int, frame: FrameType | None) -> None:
    del frame
    raise Interrupted(INTERRUPTED if number == signal.SIGINT else TERMINATED)


def reject_options(_: object, values: Sequence[str]) -> None:
    """Reject an option that no command has, where `-` may be given for standard input."""
    for value in [values] if isinstance(values, str) else values:
        if value.startswith("-") and value != "-":
            raise UnknownOptionError(
                token=Token(keyword=value.partition("=")[0], source="cli"),
                argument_collection=ArgumentCollection(),  # type: ignore[no-untyped-call]
            )
