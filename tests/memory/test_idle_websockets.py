"""A WebSocket in which nobody speaks holds no buffer: thousands of them, after one large message each, stay small."""

import pathlib
import socket
import struct

from harness import bearer

SOCKETS = 2000
MESSAGE = bytes(range(256)) * 128
# Two sockets, the task, the record of the request, and what the allocator keeps: 16 to 18 KiB in a debug build. With one read
# buffer that is not given back it was 27.
MAY_HOLD = 22 * 1024


def resident(pid: int) -> int:
    lines = (pathlib.Path(f"/proc/{pid}") / "status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kibibytes) * 1024


def read(sock: socket.socket, length: int) -> bytes:
    octets = b""
    while len(octets) < length:
        piece = sock.recv(length - len(octets))
        assert piece, "closed"
        octets += piece
    return octets


def tunnel(gateway, key) -> socket.socket:
    host, port = gateway.address.split(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    fields = {
        "Host": "gateway.example",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **bearer(key),
    }
    head = "GET /ws HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    sock.sendall(head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += sock.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return sock


def talk(sock: socket.socket) -> None:
    """One binary frame there and back, masked with zeros."""
    sock.sendall(struct.pack("!BBH", 0x82, 0x80 | 126, len(MESSAGE)) + bytes(4) + MESSAGE)
    assert read(sock, 4 + len(MESSAGE))[4:] == MESSAGE


def test_an_idle_tunnel_is_small(anything):
    key = anything.key("anything:use")
    pid = anything.process.child.pid
    for sock in [tunnel(anything, key) for _ in range(50)]:  # warm
        talk(sock)
        sock.close()
    before = resident(pid)
    sockets = [tunnel(anything, key) for _ in range(SOCKETS)]
    for sock in sockets:
        talk(sock)
    each = (resident(pid) - before) / SOCKETS
    print(f"an idle tunnel holds {each / 1024:.1f} KiB")
    for sock in sockets:
        sock.close()
    assert each < MAY_HOLD, each
