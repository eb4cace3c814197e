"""Settings come from flags and variables, are shown with their source, and have no misspellings."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings, describe_settings, load_settings


def load(*arguments: str, **environment: str) -> Settings:
    return load_settings(arguments, environment)


def test_a_flag_overrides_a_variable_and_only_the_given_environment_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIPSERVE_METRICS_PORT", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/other")
    environment = {"TIPSERVE_GRPC_PORT": "2", "tipserve_lanes": "3", "XDG_CACHE_HOME": "/caches"}
    loaded = load("--http-port", "4", TIPSERVE_HTTP_PORT="1", **environment)
    ports = (loaded.http_port, loaded.grpc_port, loaded.metrics_port)
    assert (ports, loaded.lanes) == ((4, 2, 8002), 3)
    assert loaded.cache == Path("/caches/tipserve")
    assert load(TIPSERVE_CACHE="/volume").cache == Path("/volume")


def test_variables_of_clients_and_service_links_are_ignored() -> None:
    variables = {
        "TIPSERVE_URL": "http://127.0.0.1:8000",
        "TIPSERVE_API_KEY": "a-key",
        "TIPSERVE_SERVICE_HOST": "10.0.0.1",
        "TIPSERVE_SERVICE_PORT": "8000",
        "TIPSERVE_SERVICE_PORT_HTTP": "8000",
        "TIPSERVE_PORT": "tcp://10.0.0.1:8000",
        "TIPSERVE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "TIPSERVE_PORT_8000_TCP_PROTO": "tcp",
        "TIPSERVE_PREDICTOR_SERVICE_HOST": "10.0.0.2",
        "TIPSERVE_PREDICTOR_SERVICE_PORT_HTTP": "80",
        "TIPSERVE_PREDICTOR_PORT": "tcp://10.0.0.2:80",
        "TIPSERVE_PREDICTOR_PORT_80_TCP_ADDR": "10.0.0.2",
    }
    assert load(**variables) == Settings()


@pytest.mark.parametrize(
    "arguments", [["--htp-port", "1"], ["--http", "1"], ["--http-port=1", "serve"], ["--http-port"]]
)
def test_an_unknown_or_abbreviated_flag_is_an_error(arguments: list[str]) -> None:
    wrong = next(one for one in (*arguments[::-1], "") if one != "1")
    with pytest.raises(ValueError, match=f"{wrong}.*Run `python -m service --help` for help."):
        load(*arguments)


@pytest.mark.parametrize(
    ("arguments", "address", "reason"),
    [
        ("", "127.0.0.1", "neither API keys"),
        ("--api-keys-file=keys", "0.0.0.0", "API keys are set"),
        ("--tls-cert=a --tls-key=b", "127.0.0.1", "neither API keys"),
        ("--tls-cert=a --tls-key=b --tls-client-ca=c", "0.0.0.0", "client certificates"),
        ("--host=10.0.0.7", "10.0.0.7", "host is set"),
        ("--host=127.0.0.1 --api-keys-file=keys", "127.0.0.1", "host is set"),
    ],
)
def test_the_default_address_is_loopback_unless_callers_are_checked(
    arguments: str, address: str, reason: str
) -> None:
    found, why = load(*arguments.split()).address
    assert found == address
    assert why.startswith(reason)


def test_metrics_are_reachable_where_a_proxy_hides_the_rest() -> None:
    behind = load(TIPSERVE_HOST="127.0.0.1", TIPSERVE_METRICS_HOST="0.0.0.0")
    assert (behind.address[0], behind.metrics_address) == ("127.0.0.1", ("0.0.0.0", 8002))
    assert load().metrics_address == ("127.0.0.1", 8002)


def test_an_unknown_flag_names_the_one_that_is_meant() -> None:
    with pytest.raises(ValueError, match=r"Did you mean --http-port\? Run"):
        load("--http-prot", "1")


@pytest.mark.parametrize("variable", ["TIPSERVE_HTP_PORT", "TIPSERVE_PORT"])
def test_an_unknown_variable_is_an_error(variable: str) -> None:
    with pytest.raises(ValueError, match=variable):
        load(**{variable: "8000"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--max-queue-patches=10", "max_queue_patches must be at least max_batch_patches"),
        ("--max-request-bytes=10", "max_request_bytes must be at least"),
        ("--max-body-memory-bytes=10", "max_body_memory_bytes must be at least"),
        (
            "--max-request-bytes=100000000000",
            "max_request_bytes\n.*less than or equal to 2147483647",
        ),
        ("--http-port=9000 --grpc-port=9000", "http_port and grpc_port are the same"),
        ("--tls-cert=a", "tls_cert is set without tls_key"),
        ("--tls-key=a", "tls_key is set without tls_cert"),
        ("--tls-client-ca=a", "tls_client_ca is set without"),
        ("--model=one,,two", "give at least one model"),
        ("--sizes=448x", "height x width"),
        ("--convert-precisions=fp4", "fp4"),
        ("--trusted-proxies=127.0.0.1,proxy.example.org", "write addresses.*proxy.example.org"),
        ("--trusted-proxies=10.0.0.1/8", "write addresses.*10.0.0.1/8"),
        ("--trusted-proxies=10.0.0.0/8,0.0.0.0/0", "0.0.0.0/0 would let.*name the networks"),
        ("--trusted-proxies=::/0", "trusted_proxies.0\n.*::/0 would let"),
        ("--workers=0", "workers\n.*greater than 0"),
        ("--workers=2 --enable-management", "enable_management needs workers=1"),
        ("--workers=2 --device=gpu", "workers must be 1 with device=gpu"),
        ("--workers=2 --lanes=1", "lanes is divided among the workers.*2 for 2; it is 1"),
        ("--workers=17", "max_queue_patches is divided among the workers"),
        ("--workers=5", "max_body_memory_bytes is divided.*33554432 for each"),
    ],
)
def test_values_that_are_wrong_or_do_not_fit_together_are_errors(
    arguments: str, words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        load(*arguments.split())


def test_every_setting_is_shown_with_its_source() -> None:
    arguments, environment = ["--http-port=3", "--no-show-config"], {"TIPSERVE_GRPC_PORT": "2"}
    lines = describe_settings(Settings(http_port=3), arguments, environment).splitlines()
    assert len(lines) == len(Settings.model_fields)
    assert "http_port = 3  (flag --http-port)" in lines
    assert "grpc_port = 8001  (variable TIPSERVE_GRPC_PORT)" in lines
    assert "metrics_port = 8002  (default)" in lines
    settings = Settings(http_port=3, api_keys=SecretStr("very-secret"))
    shown = describe_settings(settings, arguments, {"TIPSERVE_API_KEYS": "very-secret"})
    assert "very-secret" not in shown
    assert "api_keys = **********  (variable TIPSERVE_API_KEYS)" in shown
    lines = describe_settings(Settings(), [], {}, {"sum": 3}).splitlines()
    assert lines[-1] == "sum = 3  (computed)"


def test_lists_are_given_with_commas() -> None:
    assert Settings(model="one").model == ("one",)
    assert load("--model=one, two").model == load("--model=one", "--model=two").model
    loaded = load("--sizes", "448, 896x672", TIPSERVE_MODEL="/a/b,bundled")
    assert (loaded.model, loaded.sizes) == (("/a/b", "bundled"), ((448, 448), (896, 672)))
    lines = describe_settings(loaded, ["--sizes"], {}).splitlines()
    assert {"model = /a/b,bundled  (default)", "sizes = 448x448,896x672  (flag --sizes)"} <= {
        *lines
    }
    assert load("--convert-precisions=fp16, int8").convert_precisions == ("fp16", "int8")
    proxies = load(TIPSERVE_TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8,fd00::/8").trusted_proxies
    assert [str(one) for one in proxies] == ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"]
    assert load(TIPSERVE_TRUSTED_PROXIES="").trusted_proxies == ()
