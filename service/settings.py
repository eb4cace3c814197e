"""The server's settings, and the only reader of the environment.

Every setting is a flag (`--http-port 0`) and a variable (`TIPSERVE_HTTP_PORT=0`); a flag wins. A
flag or a `TIPSERVE_` variable that is not known is an error, so that no misspelling is ignored.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, SettingsConfigDict

from model.conversion.cache import default_cache
from model.graphs import Precision

PREFIX = "TIPSERVE_"
SIZE = re.compile(r"(\d{1,6})(?:x(\d{1,6}))?")
# What Kubernetes sets in every pod beside Services called tipserve, or tipserve-predictor as KServe
# calls one; none of it is a setting.
SERVICE_LINK = re.compile(
    r"TIPSERVE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")

# Vertex AI tells a container by these; ours, where given, count instead.
PLATFORM_VARIABLES = {
    "AIP_HTTP_PORT": "http_port",
    "AIP_HEALTH_ROUTE": "health_route",
    "AIP_PREDICT_ROUTE": "predict_route",
}

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Route = Annotated[str, Field(pattern=r"^/[\w./:@~-]+$", max_length=512)]


class Settings(BaseSettings):
    """REST, gRPC and metrics around the models that are served."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        use_attribute_docstrings=True,
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    model: Annotated[tuple[str, ...], NoDecode] = ("bundled",)
    """Models to serve, with commas between; the first is the default, which answers requests that
    name none. `bundled`, a folder with a model package, a checkpoint's folder (of transformers, or
    with a pair of official .npz files), or a hub id such as `google/tipsv2-b14`, with `@revision`
    behind it if wanted. Checkpoints are converted once, into `cache`. `name=` before any of these
    serves it under that name."""
    cache: Path = Field(default_factory=lambda: default_cache(os.environ))
    """Folder of converted packages. Default: `tipserve` in $XDG_CACHE_HOME or ~/.cache. Several
    servers may share it: one converts, the others wait for it."""
    convert_precisions: Annotated[tuple[Precision, ...], NoDecode] = ()
    """Graphs that a checkpoint is converted to beside those in fp32, with commas between: `fp16`,
    `bf16`, `int8`, `int8_weights`. Each is compared with the model, and one that is too far from
    it ends the start. OpenVINO computes in bf16 from the graphs in fp32 and needs none of these."""
    enable_management: bool = False
    """Whether models can be loaded, swapped and unloaded by `POST /v2/repository/...`. Anybody who
    may ask for a mask may then do it too: set API keys beside it."""
    model_repository: Path | None = None
    """Folder whose packages may be loaded at run time; nothing outside of it ever is."""
    sizes: Annotated[tuple[tuple[int, int], ...], NoDecode] = ()
    """Further shapes of images to be warmed up for and measured at the start, in pixels with
    commas between: `896,896x672,1372` (one number is a square, two are height and width). Other
    sizes are computed too, but the first image of each pays for what a runtime prepares."""
    runtime: Literal["auto", "onnx", "openvino", "tensorrt", "torch"] = "auto"
    """What computes. `auto` takes the fastest that is proven on this machine, and says why in the
    log and in `/v1/models`."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "int8_weights"] = "auto"
    """Number format of the arithmetic. `auto` takes less than fp32 only where the package proves
    that its graphs stay exact so, and never int8."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where it computes. `auto` takes a GPU where there is one and a library for it."""
    onnx_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Of the runtime `onnx`: its execution provider. One that cannot be had is an error."""
    lanes: Positive | None = None
    """Batches computed side by side, each by a runtime of its own. Default: one for each CPU that
    this process may use, at most 8, and no more than half of the free memory holds; on a GPU 2."""
    threads_per_lane: Positive | None = None
    """Threads of one runtime. Several lanes of one thread give more throughput than the reverse.
    Default: 1, or the CPUs that lanes leave over, shared among them."""
    pool_threads: Positive | None = None
    """Threads that decode images and encode answers. Default: as many as CPUs, at most 8, and no
    more than decode images of `max_image_pixels` at once in half of the free memory."""
    jpeg_decode: Literal["fast", "exact"] = "fast"
    """`fast` decodes a JPEG at a half, a quarter or an eighth of its size where that leaves twice
    what the model sees: in half the time, and on average half a grey level from `exact`."""
    warm_up_limit_s: Annotated[float, Field(ge=0)] = 2.0
    """How long the start may measure what batches cost, in seconds, after every served shape has
    run once. Fast models need a fraction of it."""

    watchdog_interval_s: Seconds = 10.0
    """A lane that had nothing to do for so long tries itself with a batch of its own; less often
    where that would take more than 2 % of its time. What lanes find is looked at every second."""
    watchdog_hang_limit_s: Seconds = 30.0
    """A batch that takes longer is taken for hung, unless ten times its measured cost is more. With
    every lane hung or broken the server is not ready."""
    watchdog_dead_limit_s: Seconds = 60.0
    """With no lane well for so long the server is not live either: start it anew."""

    host: str = "0.0.0.0"
    """Address that all three ports listen on."""
    http_port: Port = 8000
    """REST. 0 takes a free port."""
    grpc_port: Port = 8001
    """gRPC. 0 takes a free port."""
    metrics_port: Port = 8002
    """Prometheus metrics. 0 takes a free port."""
    health_route: Route | None = None
    """A further path of REST's health check, which needs no key. Default: AIP_HEALTH_ROUTE, as
    Vertex AI gives it. `/ping` is there in any case."""
    predict_route: Route | None = None
    """A further path of `/invocations`, which takes the body of any other route and Vertex AI's
    `instances`. Default: AIP_PREDICT_ROUTE."""
    ports_file: Path | None = None
    """Where the ports that were taken are written as JSON, once all three listen."""

    max_batch_images: Positive | None = None
    """Images of one batch. Default: doubled at the start for as long as that makes an image 5 %
    cheaper; on a CPU it hardly does."""
    max_batch_patches: Positive = 4096
    """Patches of one batch, and therefore of one image as the model sees it. On a CPU a batch
    whose size was found at the start holds no more than so many images of the native size."""
    max_batch_texts: Positive = 64
    """Texts of one batch."""
    max_queue_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that a free lane waits for a batch to fill. It helps only where a batch is much
    cheaper than its items one by one; a single request then waits this long."""
    prepare_ahead: bool | None = None
    """Whether a thread puts the next batch together while the device computes. Default: only for a
    GPU; on a CPU the lanes are the threads that would be taken from their work."""
    priority_step_s: Seconds = 5.0
    """Seconds that a request may be overtaken by later ones of the next higher priority. After
    them it goes first, so that none starves."""
    max_queue_patches: Positive = 65536
    """Work that may be inside at once, in patches; more is refused with 429."""
    text_cache_bytes: Positive = 64 * 1024 * 1024
    """Memory for the embeddings of prompts, for each model: 19,000 of 768 numbers by default."""

    max_images_per_request: Positive = 32
    """Images of one request."""
    max_texts_per_request: Positive = 1024
    """Texts, or prompts of classes, of one request."""
    max_classes_per_request: Positive = 512
    """Classes of one request, background classes included."""
    max_image_bytes: Positive = 16 * 1024 * 1024
    """Bytes of one encoded image."""
    max_image_pixels: Positive = 40_000_000
    """Pixels of one image, as its header declares them."""
    max_request_bytes: Positive = 32 * 1024 * 1024
    """Bytes of one request body or message."""
    request_timeout_s: Seconds = 60.0
    """Deadline of a request that brings none, and the longest that one may bring."""
    max_body_memory_bytes: Positive = 256 * 1024 * 1024
    """Bytes of the bodies and messages of all requests that are inside; more is refused with 429
    before it is read."""
    max_connections: Positive = 1024
    """Open connections, for each protocol. Beyond, REST closes the one that is idle longest, and
    refuses where none is."""
    max_concurrent_rpcs: Positive = 512
    """RPCs that run or wait at once; more are refused before their message is read."""
    max_stream_requests: Positive = 64
    """Requests of one gRPC stream that are worked on at once, or wait for those before them. No
    more is read of it meanwhile, so its caller stops sending."""
    stream_window_bytes: Annotated[int, Field(ge=65_535, le=16 * 1024 * 1024)] = 1024 * 1024
    """Bytes that a gRPC client may send ahead of what is read. Each stream that is held up has so
    much in memory, at times twice as much. A connection carries no more in one round trip, so that
    more is faster over long links only: 1 MiB in 20 ms are 50 MB/s."""
    client_timeout_s: Seconds = 20.0
    """In which a request's head must have come, and how long a client may send a body, or read an
    answer, slower than `min_client_bytes_per_s`."""
    min_client_bytes_per_s: Positive = 4096
    """How fast a client must send and read on the whole."""
    keep_alive_s: Seconds = 75.0
    """How long a connection may be idle; longer than a balancer in front keeps its own."""
    max_connection_age_s: Seconds = 300.0
    """After which a gRPC connection is closed once its RPCs are answered, so that clients come back
    through the balancer and find new replicas."""
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """How long a stopping server, which is no longer ready, still lets requests in, so that
    balancers notice. 0 where something else waits before SIGTERM, as Kubernetes' preStop does."""
    drain_timeout_s: Seconds = 30.0
    """How long a stopping server waits for what is inside."""

    url_hosts: str | None = None
    """Hosts from which a JSON body may have images fetched by `https://` URL: names with commas
    between them, `*.example.org` for all below it. Default: no URL is fetched."""
    url_timeout_s: Seconds = 10.0
    """Seconds that one image may take to be fetched, redirects included."""

    api_keys: SecretStr | None = None
    """API keys with commas between them; without keys everybody may ask. Only as a variable: other
    users of the machine can read a command line."""
    api_keys_file: Path | None = None
    """File with one API key a line, read again when it changes; they count beside the others."""

    tls_cert: Path | None = None
    """PEM certificate of the server, its intermediate ones behind it; REST and gRPC then speak TLS
    only. A changed file counts for new connections."""
    tls_key: Path | None = None
    """PEM private key of that certificate, not encrypted."""
    tls_client_ca: Path | None = None
    """PEM authorities; clients must then show a certificate of one of them (mTLS)."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""
    log_format: Literal["json", "text"] = "json"
    """How a log line is written."""
    access_log_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of answered requests that have a log line, evenly spread. Those that failed by the
    server's fault always have one; at 0 only they do."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None = None
    """Base address of an OpenTelemetry collector that takes OTLP over HTTP, such as
    `http://collector:4318`; off without one. Needs the extra `otel`. The exporter itself reads
    OTEL_EXPORTER_OTLP_HEADERS and its siblings, and OTEL_RESOURCE_ATTRIBUTES."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of requests that are traced, where the caller's `traceparent` does not decide. A traced
    request costs the server some 0.4 ms of CPU time, one that is not next to nothing."""
    show_config: bool = False
    """Print every setting with its value and source, secrets masked, and stop."""
    config_format: Literal["text", "json"] = "text"
    """How `show_config` prints them."""

    @field_validator("convert_precisions", mode="before")
    @classmethod
    def _split_precisions(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("model", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(name.strip() for name in value.split(","))
        if not all(names):
            raise ValueError("name at least one model, and nothing empty between commas")
        return names

    @field_validator("sizes", mode="before")
    @classmethod
    def _sides(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = [SIZE.fullmatch(size.strip()) for size in value.split(",")]
        sides = [(match[1], match[2] or match[1]) for match in found if match]
        if len(sides) != len(found):
            raise ValueError("write sizes as 448 or 448x336 (height x width), commas between")
        return tuple((int(height), int(width)) for height, width in sides)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_batch_patches > self.max_queue_patches:
            raise ValueError(
                "max_queue_patches must be at least max_batch_patches, or no batch ever fills; "
                f"{self.max_queue_patches} is less than {self.max_batch_patches}"
            )
        if self.max_image_bytes > self.max_request_bytes:
            raise ValueError("max_request_bytes must be at least max_image_bytes")
        if self.max_request_bytes > self.max_body_memory_bytes:
            raise ValueError("max_body_memory_bytes must be at least max_request_bytes")
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ValueError(f"{given} is set without {missing}; TLS needs both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca is set without tls_cert and tls_key; set all three")
        return self


def load_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read flags and variables.

    Args:
        arguments: The command line without the program's name.
        environment: The process's own; pydantic-settings reads the same variables itself.

    Raises:
        ValueError: A variable that is not known, or a value that does not fit.
        SystemExit: A flag that is not known, or `--help`.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = {n for n in environment if n.upper().startswith(PREFIX) and n.upper() not in known}
    unknown = {name for name in unknown if not _is_service_link(name, environment[name])}
    if unknown:
        raise ValueError(
            f"unknown variables {', '.join(sorted(unknown))}; `python -m service --help` lists all"
        )
    if any(argument.split("=")[0] == "--api-keys" for argument in arguments):
        raise ValueError(
            "other users of the machine can read a command line: give keys by the variable "
            "TIPSERVE_API_KEYS or by --api-keys-file"
        )
    flags = CliSettingsSource[BaseSettings](
        Settings, cli_parse_args=list(arguments), cli_use_class_docs_for_groups=True
    )
    # Values given so count more than variables, and less than flags.
    return Settings(_cli_settings_source=flags, **_from_platform(environment))  # type: ignore[arg-type]


def _is_service_link(name: str, value: str) -> bool:
    is_address = name.endswith("_PORT") and LINK_VALUE.fullmatch(value) is not None
    return is_address or SERVICE_LINK.fullmatch(name) is not None


def _from_platform(environment: Mapping[str, str]) -> dict[str, str]:
    """Settings that the platform gives by variables of its own, where no variable of ours does."""
    ours = {name.upper() for name in environment}
    return {
        name: environment[variable]
        for variable, name in PLATFORM_VARIABLES.items()
        if variable in environment and PREFIX + name.upper() not in ours
    }


def _as_text(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ",".join("x".join(map(str, v)) if isinstance(v, tuple) else v for v in value)


def describe_settings(
    settings: Settings, arguments: Sequence[str], environment: Mapping[str, str]
) -> str:
    """Each setting's value and whether flag, variable or default gave it, as lines or as JSON."""
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    variables = {name.upper() for name in environment}
    platform = {name: variable for variable, name in PLATFORM_VARIABLES.items()}
    rows: dict[str, dict[str, object]] = {}
    for name in Settings.model_fields:
        kebab = name.replace("_", "-")
        if flags & {f"--{kebab}", f"--no-{kebab}"}:
            source = f"flag --{kebab}"
        elif PREFIX + name.upper() in variables:
            source = f"variable {PREFIX}{name.upper()}"
        elif platform.get(name) in variables:
            source = f"variable {platform[name]}"
        else:
            source = "default"
        rows[name] = {"value": getattr(settings, name), "source": source}
    if settings.config_format == "json":
        # A secret's own text is its mask.
        return json.dumps(rows, default=str, indent=2)
    return "\n".join(
        f"{name} = {_as_text(row['value'])}  ({row['source']})" for name, row in rows.items()
    )
