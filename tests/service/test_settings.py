"""Settings come from flags and variables, say where from, and misspellings are errors."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings, describe_settings, load_settings


def load(*arguments: str, **environment: str) -> Settings:
    return load_settings(arguments, environment)


def test_a_flag_wins_over_a_variable() -> None:
    loaded = load("--http-port", "3", TIPSERVE_HTTP_PORT="1", TIPSERVE_GRPC_PORT="2")
    assert (loaded.http_port, loaded.grpc_port, loaded.metrics_port) == (3, 2, 8002)


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIPSERVE_HTTP_PORT", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/other")
    environment = {"TIPSERVE_GRPC_PORT": "2", "tipserve_lanes": "3", "XDG_CACHE_HOME": "/caches"}
    loaded = load_settings([], environment)
    assert (loaded.http_port, loaded.grpc_port, loaded.lanes) == (8000, 2, 3)
    assert loaded.cache == Path("/caches/tipserve")
    shown = describe_settings(loaded, [], environment).splitlines()
    assert "http_port = 8000  (default)" in shown
    assert "grpc_port = 2  (variable TIPSERVE_GRPC_PORT)" in shown


def test_variables_of_the_command_line_client_are_ignored() -> None:
    variables = {"TIPSERVE_URL": "http://127.0.0.1:8000", "TIPSERVE_API_KEY": "a-key"}
    assert load(**variables) == Settings()


def test_an_unknown_flag_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--htp-port", "1")
    assert caught.value.code == 2
    assert "--htp-port" in capsys.readouterr().err


def test_an_abbreviated_flag_is_an_error() -> None:
    with pytest.raises(SystemExit):
        load("--http", "1")


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(ValueError, match="TIPSERVE_HTP_PORT"):
        load(TIPSERVE_HTP_PORT="1")


def test_service_links_of_kubernetes_are_ignored() -> None:
    links = {
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
    assert load(**links) == Settings()


def test_a_port_that_is_no_service_link_is_an_error() -> None:
    with pytest.raises(ValueError, match="TIPSERVE_PORT"):
        load(TIPSERVE_PORT="8000")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--http-port", "70000"),
        ("--lanes", "0"),
        ("--runtime", "magic"),
        ("--max-queue-patches", "10"),
        ("--max-request-bytes", "10"),
    ],
)
def test_invalid_values_are_errors(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        load(*arguments)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().http_port = 1  # type: ignore[misc]


def test_every_setting_is_described_with_its_source() -> None:
    arguments, environment = ["--http-port=3", "--no-show-config"], {"TIPSERVE_GRPC_PORT": "2"}
    lines = describe_settings(Settings(http_port=3), arguments, environment).splitlines()
    assert len(lines) == len(Settings.model_fields)
    assert "http_port = 3  (flag --http-port)" in lines
    assert "grpc_port = 8001  (variable TIPSERVE_GRPC_PORT)" in lines
    assert "metrics_port = 8002  (default)" in lines


def test_settings_are_described_as_json_with_secrets_masked() -> None:
    settings = Settings(http_port=3, config_format="json", api_keys=SecretStr("very-secret"))
    shown = describe_settings(settings, ["--http-port=3"], {"TIPSERVE_API_KEYS": "very-secret"})
    assert "very-secret" not in shown
    rows = json.loads(shown)
    assert set(rows) == set(Settings.model_fields)
    assert rows["http_port"] == {"value": 3, "source": "flag --http-port"}
    assert rows["api_keys"] == {"value": "**********", "source": "variable TIPSERVE_API_KEYS"}
    assert rows["pool_threads"] == {"value": None, "source": "default"}


def test_several_models_are_given_in_each_way_and_shown() -> None:
    assert Settings().model == ("bundled",)
    assert Settings(model="one").model == ("one",)
    assert load("--model=one, two").model == load("--model=one", "--model=two").model
    loaded = load(TIPSERVE_MODEL="/a/b,bundled")
    assert loaded.model == ("/a/b", "bundled")
    shown = describe_settings(loaded, [], {"TIPSERVE_MODEL": ""}).splitlines()
    assert "model = /a/b,bundled  (variable TIPSERVE_MODEL)" in shown
    with pytest.raises(ValidationError, match="give at least one model"):
        load("--model=one,,two")


def test_sizes_are_squares_or_height_and_width() -> None:
    settings = load_settings(["--sizes", "448, 896x672"], {})
    assert settings.sizes == ((448, 448), (896, 672))
    assert "sizes = 448x448,896x672  (flag --sizes)" in describe_settings(
        settings, ["--sizes", "448, 896x672"], {}
    )
    with pytest.raises(ValueError, match="height x width"):
        load_settings(["--sizes", "448x"], {})


def test_the_cache_folder_may_be_set() -> None:
    assert load(TIPSERVE_CACHE="/volume").cache == Path("/volume")
    assert load("--cache=/flag", TIPSERVE_CACHE="/volume").cache == Path("/flag")


def test_precisions_are_named_with_commas_and_known() -> None:
    assert load().convert_precisions == ()
    assert load("--convert-precisions=fp16, int8").convert_precisions == ("fp16", "int8")
    with pytest.raises(ValidationError, match="fp4"):
        load("--convert-precisions=fp4")
