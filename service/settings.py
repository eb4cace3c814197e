"""The server's settings, from flags and environment variables.

Every setting is a flag (`--http-port 0`) and a variable (`TIPSERVE_HTTP_PORT=0`); a flag wins. An
unknown flag or `TIPSERVE_` variable is an error, so that no misspelling is ignored.
"""

import os
import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    CliSuppress,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from model.conversion.cache import default_cache
from model.conversion.source import split_models
from model.graphs import ExportPrecision

PREFIX = "TIPSERVE_"
SIZE = re.compile(r"(\d{1,6})(?:x(\d{1,6}))?")
# The command line client reads these; they may be exported in the same shell as the server.
CLIENT_VARIABLES = {"TIPSERVE_URL", "TIPSERVE_API_KEY"}
# Kubernetes sets these in every pod of a namespace with a Service called tipserve, or
# tipserve-predictor as KServe calls it: names and values.
SERVICE_LINK = re.compile(
    r"TIPSERVE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT(_\d+_\w+)?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_\w+=.*)"
)
# What the library writes behind the help of an option without a default, or with an obvious one.
NO_DEFAULT = re.compile(r" \(default( factory)?: (None|False|\(\)|.*lambda.*)\)$")

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"


def _split(value: object) -> object:
    """The parts of a list, which flags and variables write with commas."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _read_size(value: object) -> object:
    """Height and width of `448` or `448x336`."""
    if not isinstance(value, str):
        return value
    found = SIZE.fullmatch(value)
    if found is None:
        raise ValueError("write sizes as 448 or 448x336 (height x width), separated by commas")
    return found[1], found[2] or found[1]


def _read_network(value: object) -> object:
    try:
        network = ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"write addresses or networks, such as 10.0.0.0/8; {error}") from None
    if network.prefixlen == 0:
        raise ValueError(
            f"{network} would let every caller choose its own address; name the networks of your "
            "proxies only"
        )
    return network


def _read_models(value: object) -> object:
    return split_models(value) if isinstance(value, str) else value


Commas = (NoDecode, BeforeValidator(_split))
Size = Annotated[tuple[int, int], BeforeValidator(_read_size)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_read_network)]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
MAX_MESSAGE_BYTES: Final = 2**31 - 1  # gRPC's limit is an int32


class Settings(BaseSettings):
    """Serve TIPSv2 models over REST and gRPC, with Prometheus metrics."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    model: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_read_models)] = ("bundled",)
    """Models to serve, separated by commas. The first one is the default model, which answers
    requests that name no model. Each is `bundled`, a folder with a model package, a checkpoint
    folder (transformers, or a pair of official .npz files), or a hub id such as
    `google/tipsv2-b14`, optionally followed by `@revision`. Checkpoints are converted once, into
    `cache`. `base+heads` adds the dense heads of another folder or id. Write `name=` in front of a
    model to serve it under that name."""
    cache: Path = Field(default_factory=lambda: default_cache(os.environ))
    """Folder for converted packages, which several servers may share. Default: `tipserve` in
    $XDG_CACHE_HOME or ~/.cache."""
    convert_precisions: Annotated[tuple[ExportPrecision, ...], *Commas] = ()
    """Precisions to convert a checkpoint to in addition to fp32, separated by commas: `fp16`,
    `bf16`, `int8`. The start fails if a graph differs too much from the model. OpenVINO needs none
    of these. Default: fp16 on a machine with a GPU, left out if it differs too much."""
    enable_management: bool = False
    """Allow `POST /v2/repository/...` to load, swap and unload models. Every caller who may send
    requests may then do so: set API keys too."""
    model_repository: Path | None = None
    """Folder of the packages that may be loaded at run time. Others cannot be loaded."""
    heads: Path | None = None
    """Folder with heads, classes of your own: `:segment` and `:classify` take the class `head:NAME`
    and read `NAME.safetensors` there, as `python -m training head` writes it. A new or changed file
    is read without a restart."""
    sizes: Annotated[tuple[Size, ...], *Commas] = ()
    """Additional image sizes to warm up and measure at the start, in pixels, separated by commas:
    `896,896x672,1372` (one number is a square, two are height and width). The first image of any
    other size is slow, because the runtime prepares for it."""
    runtime: Literal["auto", "onnx", "openvino", "tensorrt", "torch"] = "auto"
    """Runtime that executes the model. `auto` chooses the fastest one that is verified on this
    machine, and reports the reason in the log and in `/v1/models`."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "int8_weights"] = "auto"
    """Number format of the computation. `auto` takes the fastest that keeps the limits of the
    package, by its measurements or its reference outputs. On CPUs it takes int8 only if the package
    names it, and bf16 only with AMX."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device that runs the model. `auto` chooses a GPU if there is one and a runtime supports
    it."""
    cpus: Positive | None = None
    """CPUs for which lanes and threads are planned. Default: those that the process may use, by its
    affinity and control group. Set it to the CPU request of a container that has no CPU limit."""
    workers: Positive = 1
    """Processes of this server. They share its ports and everything that is a total here: CPUs,
    lanes, threads, memory, the queue, and the limits of API keys. Each loads the models, on CPUs
    only. Management needs 1."""
    lanes: Positive | None = None
    """Number of batches computed in parallel, each by its own runtime instance. Default on a CPU:
    one for each of `cpus`, at most 8, and at most as many as fit into half of the free memory.
    Default on a GPU: 2."""
    pool_threads: Positive | None = None
    """Threads that decode images and encode responses. Default: `cpus`, at most 8."""
    jpeg_decode: Literal["fast", "exact"] = "fast"
    """`fast` decodes a JPEG at a half, a quarter or an eighth of its size if the result is still at
    least twice the size that the model sees. It takes half the time; patches of a photograph of 6
    megapixels differ from `exact` by up to 0.025, at a cosine of 0.9999."""

    watchdog_hang_limit_s: Seconds = 60.0
    """Seconds after which a running batch counts as hung. While every lane is hung or dead, the
    server is not live, so that the platform restarts it. Raise it if a batch takes longer."""

    host: str | None = None
    """Address that all three ports listen on; `0.0.0.0` is every address. Default: 127.0.0.1, so
    that only this machine reaches a server without protection; 0.0.0.0 if API keys or
    `tls_client_ca` are set. The container image sets 0.0.0.0."""
    metrics_host: str | None = None
    """Address that the port for metrics listens on, if not on that of `host`: `0.0.0.0` where
    `host` is 127.0.0.1 for a proxy in the same pod, which probes and scrapes go past."""
    cors_origins: str | None = None
    """Origins whose web pages may call the REST API, such as `https://app.example`, separated by
    commas. Default: only this server's own page."""
    http_port: Port = 8000
    """Port of the REST API. 0 chooses a free port."""
    grpc_port: Port = 8001
    """Port of the gRPC API. 0 chooses a free port."""
    metrics_port: Port = 8002
    """Port of the Prometheus metrics. 0 chooses a free port."""
    token_vocabulary: Path | None = None
    """File `cl100k_base.tiktoken` with the vocabulary of OpenAI's tokenizer. `/v1/embeddings` then
    also accepts token ids, which LangChain's `OpenAIEmbeddings` sends by default. Default: token
    ids are refused."""
    trusted_proxies: Annotated[tuple[Network, ...], *Commas] = ()
    """Addresses and networks of proxies in front, such as `127.0.0.1,10.0.0.0/8`, separated by
    commas. Of their requests, the caller is the last address in `X-Forwarded-For` that is not one
    of these, so callers behind a proxy share fairly. The header of any other peer is ignored.
    Default: none; all callers behind a proxy count as one, and without API keys a server on
    loopback accepts names of loopback only, against DNS rebinding."""
    ports_file: Path | None = None
    """File to which the chosen ports are written as JSON, once all three listen."""

    max_batch_images: Positive | None = None
    """Maximum images in a batch. Default: measured at the start, by doubling it as long as that
    makes an image at least 5 % cheaper; on a CPU it rarely does."""
    max_batch_patches: Positive = 4096
    """Maximum patches in a batch, and so in one image at model size. A patch of more than 14 x 14
    pixels counts there as one for each 144 of them; eight such images of 14 x 14 are the most of a
    request in pixels. On a GPU whose free memory is known, the default bounds single images only,
    and that memory bounds batches."""
    max_queue_patches: Positive = 65536
    """Maximum patches of all requests in progress for each model. Further requests get 429."""

    max_image_bytes: Positive = 16 * 1024 * 1024
    """Maximum bytes of an encoded image."""
    max_image_pixels: Positive = 40_000_000
    """Maximum pixels of an image, as declared by its header. Decoding may take 4.4 bytes for each
    of them, for one image and for all of a request that are decoded at the same time. Some files
    take more for each of their own pixels: WebP 12, HEIC 14, HEIC of more than 8 bits 21,
    progressive JPEG without subsampling 6, TIFF in one strip 7."""
    max_request_bytes: Annotated[Positive, Field(le=MAX_MESSAGE_BYTES)] = 32 * 1024 * 1024
    """Maximum bytes of a request body or message, below 2 GiB."""
    request_timeout_s: Seconds = 60.0
    """Deadline in seconds of a request that sets none, and the longest that a request may set."""
    max_body_memory_bytes: Positive = 128 * 1024 * 1024
    """Maximum bytes of the bodies and messages of all requests in progress. Further requests get
    429. Messages of gRPC count once they are whole; 36 may arrive at once."""
    max_work_memory_bytes: Positive = 160 * 1024 * 1024
    """Maximum bytes that the images of all requests take while they are decoded, and their maps,
    masks and answers until they are sent. A request waits for its share until its deadline. One
    whose answer needs more than four fifths of it gets 413 with the ways to a smaller answer. An
    image that needs more is decoded alone."""
    image_cache_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Maximum bytes of the embeddings of images that are kept for further requests for the same
    file at the same size, such as masks of other classes. They need neither decoding nor the model.
    While images and answers take more than 96 MiB, none are kept. 0 keeps none."""
    image_cache_shared: bool = False
    """Let callers with different API keys share kept images. Each could then learn from the time of
    an answer whether another has sent an image. Without keys all callers share them."""
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds during which a stopping server fails readiness but still accepts requests, so that
    load balancers notice. Keep 0 if something else delays SIGTERM, such as a preStop hook of
    Kubernetes."""
    drain_timeout_s: Seconds = 30.0
    """Maximum seconds that a stopping server waits for requests in progress."""

    url_hosts: str | None = None
    """Hosts from which images may be fetched by an `https://` URL in a JSON body: names separated
    by commas; `*.example.org` allows all subdomains. Default: no URL is fetched. The page opens
    images of these hosts too, where a host lets pages read them (CORS): `/#image=https://...`."""

    api_keys: CliSuppress[SecretStr | None] = None
    """API keys, separated by commas. Without keys every caller is accepted. Set it only as a
    variable: other users of the machine can read a command line."""
    api_keys_file: Path | None = None
    """File with one API key per line, in addition to `api_keys`. It is read again when it changes.
    `KEY name=acme requests_per_s=20 requests_at_once=8` names the caller, whose requests get a
    metric, and limits them; keys of one name share its limits, and both are optional. A gRPC stream
    counts as one request."""

    tls_cert: Path | None = None
    """PEM file with the server certificate, followed by its intermediate certificates. REST and
    gRPC then accept only TLS. New connections use a changed file."""
    tls_key: Path | None = None
    """PEM file with the unencrypted private key of that certificate."""
    tls_client_ca: Path | None = None
    """PEM file with certificate authorities. Clients must then present a certificate of one of
    them (mTLS)."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Minimum level of log lines."""
    access_log_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of answered requests that get a log line, evenly spread. Server errors always get
    one."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None = None
    """Base address of an OpenTelemetry collector that accepts OTLP over HTTP, such as
    `http://collector:4318`. Without it tracing is off. Needs the extra `otel`. OpenTelemetry's own
    variables set the rest, such as OTEL_TRACES_SAMPLER_ARG (see docs/tracing.md) and
    OTEL_EXPORTER_OTLP_HEADERS."""
    show_config: bool = False
    """Print every setting with its value and source, with secrets masked, and exit."""

    @classmethod
    def settings_customise_sources(  # noqa: PLR0917 - as the library calls it
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read no environment and no file; `load_settings` gives what it has read."""
        return (init_settings,)

    @property
    def has_keys(self) -> bool:
        """Whether callers need an API key."""
        return self.api_keys is not None or self.api_keys_file is not None

    @property
    def address(self) -> tuple[str, str]:
        """The address to listen on, and the reason for it."""
        if self.host is not None:
            return self.host, "host is set"
        if self.has_keys:
            return EVERY_ADDRESS, "API keys are set"
        if self.tls_client_ca is not None:
            return EVERY_ADDRESS, "client certificates are required"
        return LOOPBACK, "neither API keys nor client certificates are required; see --host"

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Where the metrics server listens."""
        return self.metrics_host or self.address[0], self.metrics_port

    def totals(self) -> dict[str, tuple[int, int]]:
        """What workers divide among them: each setting's total, and the least that one needs."""
        least = {
            "lanes": 1,
            "pool_threads": 1,
            "max_queue_patches": self.max_batch_patches,
            "max_body_memory_bytes": self.max_request_bytes,
            "max_work_memory_bytes": 1,
            "image_cache_bytes": 0,
        }
        totals = {name: getattr(self, name) for name in least}
        return {name: (n, least[name]) for name, n in totals.items() if n is not None}

    @property
    def max_answer_bytes(self) -> int:
        """Most bytes of an answer, estimated from image headers before any work."""
        return self.max_work_memory_bytes * 4 // 5

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for small, large in (
            ("max_batch_patches", "max_queue_patches"),  # or no batch ever fills
            ("max_image_bytes", "max_request_bytes"),
            ("max_request_bytes", "max_body_memory_bytes"),
        ):
            least, most = getattr(self, small), getattr(self, large)
            if least > most:
                raise ValueError(f"{large} must be at least {small}; {most} is less than {least}")
        if self.http_port == self.grpc_port != 0:
            raise ValueError("http_port and grpc_port are the same; change one of them")
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ValueError(f"{given} is set without {missing}; TLS needs both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca is set without tls_cert and tls_key; set all three")
        self._check_workers()
        return self

    def _check_workers(self) -> None:
        if self.workers == 1:
            return
        if self.enable_management:
            raise ValueError(
                "enable_management needs workers=1: a request reaches one of the processes, and "
                "the others would not know of it"
            )
        if self.device == "gpu":
            raise ValueError("workers must be 1 with device=gpu: each would load the models there")
        for name, (total, least) in self.totals().items():
            if total < self.workers * least:
                raise ValueError(
                    f"{name} is divided among the workers and must be at least {least} for each, "
                    f"{self.workers * least} for {self.workers}; it is {total}"
                )


@lru_cache(256)
def is_loopback(name: str) -> bool:
    """Whether a name or an address is always of this machine."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


class _Parser(ArgumentParser):
    """Raises instead of ending the process, and names values plainly."""

    def add_option(self, *names: str, **named: Any) -> Any:
        """Add an option as the library describes it."""
        value = named.get("metavar")
        if value is not None and value[0] != "{":
            named["metavar"] = "LIST" if "tuple" in value else value.upper()
        named["help"] = NO_DEFAULT.sub("", named["help"])
        return self.add_argument(*names, **named)

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        meant = get_close_matches(unknown[1], flags, 1) if unknown else []
        hint = f" Did you mean {meant[0]}?" if meant else ""
        raise ValueError(f"{message}.{hint} Run `{self.prog} --help` for help.")


def load_settings(
    arguments: Sequence[str], environment: Mapping[str, str], program: str = "python -m service"
) -> Settings:
    """Read flags and variables.

    Args:
        arguments: The command line without the program's name.
        environment: Usually `os.environ`; no other environment is read.
        program: The program's name, for help.

    Raises:
        ValueError: A flag or variable is unknown, or a value is invalid.
        SystemExit: `--help` was given.
    """
    values = {"cache": str(default_cache(environment)), **_from_environment(environment)}
    if any(argument.split("=")[0] == "--api-keys" for argument in arguments):
        raise ValueError(
            "other users of the machine can read a command line: give keys by the variable "
            "TIPSERVE_API_KEYS or by --api-keys-file"
        )
    parser = _Parser(
        prog=program,
        usage="%(prog)s [OPTIONS]",
        description=Settings.__doc__,
        allow_abbrev=False,
        epilog="Each option is also a variable: TIPSERVE_HTTP_PORT=9000. An option wins.",
    )
    source: CliSettingsSource[ArgumentParser] = CliSettingsSource(
        Settings, root_parser=parser, add_argument_method=_Parser.add_option
    )
    given: Any = values
    return Settings(_cli_settings_source=source(args=list(arguments)), **given)


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that variables give.

    Raises:
        ValueError: A variable with our prefix is no setting.
    """
    fields = {PREFIX + field.upper(): field for field in Settings.model_fields}
    ours = {name.upper(): value for name, value in environment.items()}
    ours = {name: value for name, value in ours.items() if name.startswith(PREFIX)}
    unknown = [
        name
        for name, value in ours.items()
        if name not in fields.keys() | CLIENT_VARIABLES
        and not SERVICE_LINK.fullmatch(f"{name}={value}")
    ]
    if unknown:
        raise ValueError(
            f"unknown variables {', '.join(sorted(unknown))}; `python -m service --help` lists all"
        )
    return {fields[name]: value for name, value in ours.items() if name in fields}


def _as_text(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ",".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)


def describe_settings(
    settings: Settings,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    computed: Mapping[str, int] | None = None,
) -> str:
    """Each setting with its value and source (flag, variable or default), one a line.

    The last lines are numbers that were computed from the settings.
    """
    flags = {argument.split("=")[0] for argument in arguments}
    variables = {name.upper() for name in environment}
    lines = []
    for name in Settings.model_fields:
        kebab, variable, source = name.replace("_", "-"), PREFIX + name.upper(), "default"
        if flags & {f"--{kebab}", f"--no-{kebab}"}:
            source = f"flag --{kebab}"
        elif variable in variables:
            source = f"variable {variable}"
        # Text of a secret masks it.
        lines.append(f"{name} = {_as_text(getattr(settings, name))}  ({source})")
    lines += [f"{name} = {value}  (computed)" for name, value in (computed or {}).items()]
    return "\n".join(lines)
