"""Starts a gateway with a backend behind it, and makes keys for it on the command line.

Everything is on loopback and on free ports; the store is a file in a folder of the test run. Nothing here knows what a
test is about: no assertions but that the processes live.
"""

import atexit
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import time

import requests

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "gateway.yaml"
START_WITHIN = 30.0  # seconds; a debug build on a busy machine
STOP_WITHIN = 20.0

# What the sample backend has from its start.
MODEL_A = "m-1"
MODEL_B = "m-2"


def binary() -> str:
    """The gateway under test: $SEEME_GATEWAY_BIN, else the debug build."""
    default = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "debug" / "seeme-gateway"
    path = pathlib.Path(os.environ.get("SEEME_GATEWAY_BIN", default)).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path}: build it with `cargo build`, or name another in SEEME_GATEWAY_BIN")
    return str(path)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % probe.getsockname()[1]


class Process:
    """A child process with its output in a file, stopped by SIGTERM."""

    def __init__(self, arguments, output: pathlib.Path, environment=None):
        self.output = output
        with output.open("wb") as sink:
            self.child = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=environment
            )
        atexit.register(self.child.kill)  # of a start that failed half-way; does nothing to one that has ended

    def wait_until(self, what: str, ready) -> None:
        """Returns when `ready` does; a process that ends or is late is reported with what it wrote."""
        deadline = time.monotonic() + START_WITHIN
        while not ready():
            if self.child.poll() is not None:
                raise RuntimeError(f"ended with {self.child.returncode} before {what}:\n{self.text()[-4000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {START_WITHIN}s:\n{self.text()[-4000:]}")
            time.sleep(0.02)

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def stop(self) -> int:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise


class Gateway:
    """A running gateway, with the shipped gateway.yaml unless told another, an account that is never rate limited, and
    its backend. Another file takes its addresses from the same variables as the shipped one."""

    ACCOUNT = "acme"

    def __init__(self, folder: pathlib.Path, upstream: str = "", config: pathlib.Path = CONFIG):
        folder.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.binary = binary()
        self.secrets = []
        self.store = folder / "gateway.db"
        self.backend = None
        if not upstream:
            upstream = free_address()
            self.backend = Process([self.binary, "sample-backend", "--listen", upstream], folder / "backend.log")
            self.backend.wait_until("open port of the sample backend", lambda: accepts(upstream))
        self.address = free_address()
        self.admin = f"http://{(admin := free_address())}"
        self.environment = {
            **os.environ,
            "SEEME_GATEWAY_PUBLIC": self.address,
            "SEEME_GATEWAY_ADMIN": admin,
            "SEEME_GATEWAY_STORE": f"sqlite:{self.store}",
            "SEEME_GATEWAY_UPSTREAM": f"http://{upstream}",
        }
        self.url = f"http://{self.address}"
        self.backend_url = f"http://{upstream}"
        self.api = f"{self.url}/api/v1/"
        self.account(self.ACCOUNT)
        self.process = Process([self.binary, "run", "-c", str(self.config)], folder / "gateway.log", self.environment)
        self.process.wait_until("ready gateway", self.is_ready)

    def is_ready(self) -> bool:
        try:
            return requests.get(f"{self.admin}/readyz", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def scrape(self) -> str:
        return requests.get(f"{self.admin}/metrics", timeout=5).text

    def cli(self, *arguments: str) -> str:
        """Runs a subcommand on the same configuration and store; returns what it printed."""
        command = [self.binary, *arguments, "-c", str(self.config)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def account(self, name: str, plan: str = "enterprise") -> str:
        limits = ["--requests-per-minute", "1000000", "--requests-per-day", "10000000"] if plan == "enterprise" else []
        self.cli("accounts", "set", name, "--plan", plan, *limits)
        return name

    def key(self, *scopes: str, account: str = ACCOUNT, model_ids=(), environment: str = "live") -> dict:
        """A new key, made by the command line: the object of the management API, with the secret in `key`."""
        arguments = ["--name", f"test {secrets.token_hex(4)}", "--account", account, "--environment", environment]
        for scope in scopes:
            arguments += ["--scope", scope]
        for model in model_ids:
            arguments += ["--model-id", model]
        made = json.loads(self.cli("keys", "create", *arguments, "--json"))
        self.secrets.append(made["key"])
        return made

    def stop(self) -> int:
        """Ends both processes; the exit code of the gateway."""
        code = self.process.stop()
        if self.backend:
            self.backend.stop()
        return code


def accepts(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    except OSError:
        return False


def bearer(key) -> dict:
    """The header that presents a key (the object, or its secret)."""
    return {"Authorization": "Bearer " + (key["key"] if isinstance(key, dict) else key)}


def eventually(holds, within: float = 2.0, every: float = 0.01) -> bool:
    """Whether it comes to hold in time; what is looked at tells of no event to wait for. Management calls are limited to 60 a
    minute for each key: look at those less often."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
