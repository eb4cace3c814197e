"""The fake runtime of the service's tests, and servers over it."""

from tests.service.conftest import (  # noqa: F401 - fixtures
    clock,
    encode_image,
    load_fake,
    make_settings,
    manifest,
    metrics,
    runtime,
    serve_fake,
    serving,
)
