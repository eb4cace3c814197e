"""TLS as gRPC takes it: its core asks before every new connection whether there is a newer one."""

from typing import Any

import grpc

from service.safety.tls import Tls, TlsMaterial


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials that follow the files; a client's certificate is asked for where one is set."""
    given = tls.current()

    def newer() -> Any:
        # Called on gRPC's own threads; None keeps what it has.
        nonlocal given
        material = tls.current()
        if material is given:
            return None
        given = material
        return _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), newer, require_client_authentication=given.client_ca is not None
    )


def _configuration(material: TlsMaterial) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )
