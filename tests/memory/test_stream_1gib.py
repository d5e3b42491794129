"""Bodies pass through the gateway without being held: 1 GiB up and 1 GiB down, and it grows by less than 16 MiB.

What counts is the peak of the resident memory, as the kernel keeps it, above what a warm gateway has. SEEME_STREAM_MIB
makes the bodies smaller or larger.
"""

import http.client
import json
import os
import pathlib

import pytest
from harness import bearer

MIB = 1024 * 1024
SIZE = int(os.environ.get("SEEME_STREAM_MIB", "1024")) * MIB
MAY_GROW = 16 * MIB
CHUNK = bytes(range(256)) * 1024


class Resident:
    """The resident memory of a process."""

    def __init__(self, pid: int):
        self.folder = pathlib.Path(f"/proc/{pid}")
        (self.folder / "clear_refs").write_text("5")  # forget the peak so far: proc(5)
        self.before = self.bytes("VmRSS")

    def bytes(self, member: str) -> int:
        lines = (self.folder / "status").read_text().splitlines()
        (kibibytes,) = [line.split()[1] for line in lines if line.startswith(f"{member}:")]
        return int(kibibytes) * 1024

    def growth(self) -> int:
        return self.bytes("VmHWM") - self.before


@pytest.fixture
def connection(anything):
    opened = http.client.HTTPConnection(anything.address, timeout=60)
    yield opened
    opened.close()


def upload(connection, key, size: int) -> None:
    """Sends `size` bytes piece by piece; the backend tells what arrived."""
    assert size % len(CHUNK) == 0
    pieces = (CHUNK for _ in range(size // len(CHUNK)))
    connection.request("POST", "/upload", pieces, {**bearer(key), "Content-Length": str(size)})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    assert json.loads(body)["bytes"] == size


def download(connection, key, size: int) -> None:
    """Reads `size` bytes into one small buffer."""
    connection.request("GET", f"/download?bytes={size}", headers=bearer(key))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert int(answer.headers["Content-Length"]) == size
    buffer, received = bytearray(MIB), 0
    while count := answer.readinto(buffer):
        received += count
    assert received == size


@pytest.mark.parametrize("transfer", [upload, download])
def test_a_body_of_any_size_passes_in_little_memory(anything, connection, transfer):
    key = anything.key("anything:use")
    # Buffers of the connection and first uses of code belong to a warm gateway, whatever the size of a body.
    transfer(connection, key, 4 * MIB)
    resident = Resident(anything.process.child.pid)
    transfer(connection, key, SIZE)
    grown = resident.growth()
    print(f"{transfer.__name__} of {SIZE // MIB} MiB: {resident.before / MIB:.1f} MiB resident, peak {grown / MIB:+.1f} MiB")
    assert grown < MAY_GROW, f"{grown / MIB:.1f} MiB for a body of {SIZE // MIB} MiB"


def test_a_process_that_holds_a_body_would_be_found():
    """The measure itself: memory that is taken and given back shows in the peak."""
    resident = Resident(os.getpid())
    held = bytearray(32 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert resident.growth() > MAY_GROW
