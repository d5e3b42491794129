"""What testssl.sh finds wrong with the TLS of the gateway: nothing, but that its certificate is signed by nobody known.

It takes about a minute.
"""

import json
import subprocess

# About the certificate of this test, not about the gateway's TLS.
ABOUT_THE_CERTIFICATE = ("cert_", "chain_of_trust", "cert", "OCSP", "CRL", "DNS_CAArecord", "overall_grade")
BAD = {"MEDIUM", "HIGH", "CRITICAL", "FATAL"}


def test_testssl_finds_nothing(tls_gateway, tmp_path):
    report = tmp_path / "testssl.json"
    port = tls_gateway.address.rsplit(":", 1)[1]
    command = ["testssl", "--ip", "127.0.0.1", "--quiet", "--color", "0", "--severity", "LOW", "--jsonfile", report]
    subprocess.run([*command, f"localhost:{port}"], capture_output=True, timeout=300, check=False)
    findings = json.loads(report.read_text())
    bad = [f for f in findings if f["severity"] in BAD and not f["id"].startswith(ABOUT_THE_CERTIFICATE)]
    assert not bad, bad
