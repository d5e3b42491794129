"""CORS as a browser sees it: pages of two origins call the gateway with JavaScript's `fetch`, in a real Chromium.

The page reports to the server that it came from, so nothing here waits for a time. What each field looks like on the wire
is the business of the Rust tests; here the question is whether a browser is content with them.
"""

import http.server
import json
import queue
import shutil
import subprocess
import threading

import pytest
from harness import REPOSITORY, Gateway

CONFIG = REPOSITORY / "tests" / "data" / "cors.yaml"
REPORT_WITHIN = 60.0  # seconds, the start of the browser included

# Runs each call and reports what the page could see of the answer, or that it could see none.
PAGE = """<!doctype html><link rel="icon" href="data:,"><script>
const calls = %s;
async function run([target, options]) {
  try {
    const answer = await fetch(target, options);
    const header = name => answer.headers.get(name);
    return {
      status: answer.status, remaining: header("X-RateLimit-Remaining"), policy: header("RateLimit-Policy"),
      request_id: header("X-Request-Id"), retry_after: header("Retry-After"), server_date: header("Date"),
      body: (await answer.text()).slice(0, 300),
    };
  } catch (error) { return { failed: String(error) }; }
}
(async () => {
  const seen = [];
  for (const call of calls) seen.push(await run(call));
  await fetch("/report", { method: "POST", body: JSON.stringify(seen) });
})();
</script>"""


class Site:
    """A web site on a free port, whose one page makes the calls that it is given."""

    def __init__(self):
        self.calls, self.reports = [], queue.Queue()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer((PAGE % json.dumps(site.calls)).encode())

            def do_POST(self):
                site.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer(b"")

            def answer(self, body):
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def visit(self, folder, *calls):
        """What a page of this site sees when it makes these calls, one after the other."""
        self.calls = calls
        browser = [
            shutil.which("chromium") or "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={folder}", "--remote-debugging-port=0", self.origin,
        ]  # fmt: skip
        with (folder / "browser.log").open("wb") as log:
            running = subprocess.Popen(browser, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            return self.reports.get(timeout=REPORT_WITHIN)
        except queue.Empty:
            raise AssertionError((folder / "browser.log").read_text(errors="replace")[-4000:]) from None
        finally:
            running.terminate()
            running.wait(20)


@pytest.fixture(scope="module")
def sites():
    both = Site(), Site()
    yield both
    for site in both:
        site.server.shutdown()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, sites):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEME_TEST_ORIGIN", sites[0].origin)
        running = Gateway(tmp_path_factory.mktemp("cors"), config=CONFIG)
    yield running
    assert running.stop() == 0


def with_key(key, **options):
    return {"headers": {"Authorization": f"Bearer {key['key']}", **options.pop("headers", {})}, **options}


def test_a_page_of_an_allowed_origin_uses_its_key_and_reads_what_the_gateway_tells(gateway, sites, tmp_path):
    key = gateway.key("anything:use", account=gateway.account("browser", "free"))
    change = {"Content-Type": "application/json", "Idempotency-Key": "a-key-of-sixteen", "If-Match": '"1"'}
    got, put, failed, denied, managed = sites[0].visit(
        tmp_path,
        (f"{gateway.url}/echo/x", with_key(key)),
        (f"{gateway.url}/echo/y", with_key(key, method="PUT", body="{}", headers=change)),
        (f"{gateway.url}/echo/z", {}),
        (f"{gateway.url}/echo/z", with_key({"key": "sm_live_wrong"})),
        (f"{gateway.api}api-keys/current", with_key(key)),
    )
    assert got["status"] == 200 and '"path"' in got["body"], got
    assert got["remaining"] == "59" and got["policy"].startswith('"minute";q=60'), got
    assert len(got["request_id"]) == 32
    assert got["server_date"] is None, "a field that is not exposed is not to be seen: the page sees what it sees by CORS"
    assert (put["status"], put["remaining"]) == (200, "58"), put
    assert failed["status"] == 401 and "missing_key" in failed["body"], failed
    assert denied["status"] == 401 and "invalid_key" in denied["body"], denied
    assert managed["status"] == 200 and key["id"] in managed["body"], managed


def test_a_page_reads_when_to_come_back(gateway, sites, tmp_path):
    key = gateway.key("anything:use", account=gateway.account("busy", "free"))
    # Two minutes' worth, so that one of them is used up whenever it began.
    seen = sites[0].visit(tmp_path, *[(f"{gateway.url}/echo/x", with_key(key))] * 121)
    refused = [answer for answer in seen if answer.get("status") == 429]
    assert refused, seen[-1]
    assert 1 <= int(refused[0]["retry_after"]) <= 60 and refused[0]["remaining"] == "0", refused[0]


def test_a_page_of_another_origin_sees_nothing_and_sends_no_key(gateway, sites, tmp_path):
    key = gateway.key("anything:use")
    with_credential, without = sites[1].visit(
        tmp_path, (f"{gateway.url}/echo/x", with_key(key)), (f"{gateway.url}/echo/x", {})
    )
    assert "failed" in with_credential and "failed" in without, (with_credential, without)
    usage = json.loads(gateway.cli("keys", "usage", key["id"], "--json"))
    assert usage["total_requests"] == 0, "the browser asked and was not allowed to send the key"
