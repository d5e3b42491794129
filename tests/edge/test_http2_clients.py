"""curl and h2load, which speak HTTP/2 as their own libraries do."""

import re
import subprocess

import pytest


def curl(*arguments) -> str:
    done = subprocess.run(["curl", "--silent", "--show-error", "--max-time", "20", *arguments], capture_output=True,
                          text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def key(gateway) -> str:
    return f"Authorization: Bearer {gateway.key('anything:use')['key']}"


@pytest.mark.parametrize("version, spoken", [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl_over_tls(tls_gateway, version, spoken):
    said = curl(version, "--cacert", tls_gateway.ca, "-H", key(tls_gateway), "-w", "\n%{http_version} %{http_code}",
                f"{tls_gateway.url}/echo/x")
    assert said.endswith(f"\n{spoken} 200"), said
    assert '"x-forwarded-proto":["https"]' in said.replace(" ", "")


def test_curl_by_prior_knowledge_uploads_and_downloads(anything, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"x" * 5_000_000)
    common = ["--http2-prior-knowledge", "-H", key(anything)]
    assert '"body_bytes":5000000' in curl(*common, "--data-binary", f"@{body}", f"{anything.url}/echo/x").replace(" ", "")
    assert curl(*common, "-o", "/dev/null", "-w", "%{size_download}", f"{anything.url}/echo/x?bytes=5000000") == "5000000"
    assert curl(*common, "-o", "/dev/null", "-w", "%{http_code}", f"{anything.url}/echo/x?status=418") == "418"


@pytest.mark.parametrize("over_tls", [False, True])
def test_h2load_has_every_request_answered(anything, tls_gateway, over_tls):
    gateway = tls_gateway if over_tls else anything
    done = subprocess.run(["h2load", "-c", "10", "-m", "20", "-n", "4000", "-H", key(gateway), f"{gateway.url}/echo/x"],
                          capture_output=True, text=True, timeout=120)
    assert "4000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout, done.stdout
    assert re.search(r"status codes: 4000 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout), done.stdout
