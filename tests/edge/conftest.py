"""A gateway with TLS in front, for the clients of the edge."""

import subprocess

import pytest
from harness import Gateway

ROUTES = """
routes:
  - { match: "* /{*rest}", scope: anything:use }
"""
TLS = """
listen:
  public: { address: "${SEEME_GATEWAY_PUBLIC}", tls: { certificate: server.crt, private_key: server.key } }
  admin:  { address: "${SEEME_GATEWAY_ADMIN}" }
store: { url: "${SEEME_GATEWAY_STORE}" }
upstreams:
  seeme: { endpoints: ["${SEEME_GATEWAY_UPSTREAM}"] }
"""


def certificate(folder) -> None:
    """`server.crt` and `server.key` for localhost, signed by itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-keyout", folder / "server.key", "-out", folder / "server.crt", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth"],
        check=True, capture_output=True,
    )


@pytest.fixture(scope="session")
def tls_gateway(tmp_path_factory):
    """With a certificate for localhost that it has signed itself: `tls_gateway.ca`."""
    folder = tmp_path_factory.mktemp("tls")
    certificate(folder)
    config = folder / "gateway.yaml"
    config.write_text(TLS + ROUTES)
    running = Gateway(folder / "run", config=config)
    running.ca = folder / "server.crt"
    running.url = f"https://localhost:{running.address.rsplit(':', 1)[1]}"
    yield running
    assert running.stop() == 0
