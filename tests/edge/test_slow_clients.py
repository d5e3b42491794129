"""slowhttptest, the tool of the slow attacks: heads, bodies, readers and ranges. Each attack is let go within the limits of
the gateway, and a client that does no harm is served all the while.

The figures are printed (pytest -s); what is asserted has seconds to spare, but less than the attack would hold on.
"""

import collections
import json
import re
import signal
import subprocess
import threading
import time

import pytest
import requests
from harness import Gateway, bearer, eventually

CONNECTIONS = 200
LIMIT = 2.0  # seconds: every timeout of the gateway
ATTACK = 20  # how long it goes on where nobody ends it
GONE_WITHIN = LIMIT + 13.0
# The client's, and the one by which the tool looks whether the service is there.
OTHERS = 2
CONFIG = f"""
listen:
  public: {{ address: "${{SEEME_GATEWAY_PUBLIC}}" }}
  admin:  {{ address: "${{SEEME_GATEWAY_ADMIN}}" }}
store: {{ url: "${{SEEME_GATEWAY_STORE}}" }}
upstreams:
  seeme: {{ endpoints: ["${{SEEME_GATEWAY_UPSTREAM}}"] }}
timeouts: {{ header: {LIMIT:.0f}s, body_idle: {LIMIT:.0f}s, idle: {LIMIT:.0f}s, keepalive: {LIMIT:.0f}s }}
routes:
  - {{ match: "GET /echo/{{*rest}}", scope: anything:use }}
  - {{ match: "* /{{*rest}}", access: public }}
"""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    folder = tmp_path_factory.mktemp("impatient")
    config = folder / "gateway.yaml"
    config.write_text(CONFIG)
    running = Gateway(folder / "run", config=config)
    yield running
    assert running.stop() == 0


class Client:
    """Asks over and over on one connection until it is told to stop, and keeps what it got and how long it waited."""

    def __init__(self, gateway):
        self.url, self.headers = f"{gateway.url}/echo/x", bearer(gateway.key("anything:use"))
        self.answers, self.ended = [], threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        with requests.Session() as session:
            while not self.ended.wait(0.02):
                begun = time.monotonic()
                try:
                    status = session.get(self.url, headers=self.headers, timeout=10).status_code
                except requests.RequestException as error:
                    status = repr(error)
                self.answers.append((status, time.monotonic() - begun))

    def stop(self):
        self.ended.set()
        self.thread.join()
        return self.answers


def metric(gateway, name) -> int:
    return int(float(re.search(rf"^{name} (\S+)$", gateway.scrape(), re.MULTILINE)[1]))


def attack(gateway, path, *arguments):
    """Runs the tool until its connections are gone. Returns how the requests on the path ended, as the log has it."""
    before = metric(gateway, "gateway_connections_total")
    client = Client(gateway)
    begun = time.monotonic()
    tool = subprocess.Popen(
        ["slowhttptest", *arguments, "-c", str(CONNECTIONS), "-r", "200", "-l", str(ATTACK), "-u", gateway.url + path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        came = lambda: metric(gateway, "gateway_connections_total") - before >= CONNECTIONS
        assert eventually(came, within=LIMIT + 5.0), "it has not opened them all"
        opened = time.monotonic() - begun
        gone = eventually(lambda: metric(gateway, "gateway_connections") <= OTHERS, within=GONE_WITHIN)
        took = time.monotonic() - begun
    finally:
        tool.send_signal(signal.SIGINT)
        said = tool.communicate(timeout=20)[0]
        answers = client.stop()
    assert gone, f"{metric(gateway, 'gateway_connections')} of {CONNECTIONS} are there after {took:.1f} s\n{said[-600:]}"
    statuses = collections.Counter(status for status, _ in answers)
    print(f"{' '.join(arguments)}: {CONNECTIONS} open after {opened:.1f} s, gone after {took:.1f} s (limit {LIMIT} s); "
          f"the client got {dict(statuses)}, the slowest in {max(waited for _, waited in answers) * 1000:.0f} ms")
    assert set(statuses) == {200}, statuses
    assert "service available" in said and not re.search(r"service available:\W+(?:\[[\d;]*m)?NO", said), said[-600:]
    lines = (json.loads(line) for line in gateway.process.text().splitlines() if line.startswith("{"))
    # The tool's look at the service is one that was answered, or that it cut off.
    return collections.Counter((line["status"], line["code"]) for line in lines if line.get("path") == path.split("?")[0])


def test_heads_that_never_end(impatient):
    # A field each second does not buy time. What was never a request is not logged as one.
    ended = attack(impatient, "/slow-head", "-H", "-i", "1")
    assert sum(ended.values()) < 10, ended


def test_bodies_that_never_end(impatient):
    ended = attack(impatient, "/upload", "-B", "-i", "5", "-s", "100000")
    # Among the connections that were waited for are the others; so many of the tool's may have come too late.
    assert ended[(408, "request_timeout")] >= CONNECTIONS - OTHERS, ended


def test_readers_that_take_next_to_nothing(impatient):
    ended = attack(impatient, "/download?bytes=50000000", "-X", "-w", "1", "-y", "64", "-n", "1", "-z", "1")
    assert ended[(499, None)] >= CONNECTIONS - OTHERS, ended


@pytest.mark.parametrize("ranges, ended", [("2000", (404, None)), ("20000", (431, "headers_too_large"))])
def test_thousands_of_ranges(impatient, ranges, ended):
    """The backend does as it likes with a Range; one longer than a head may be does not reach it."""
    path = f"/ranges-{ranges}"
    assert attack(impatient, path, "-R", "-a", "5", "-b", ranges)[ended] >= CONNECTIONS - OTHERS
