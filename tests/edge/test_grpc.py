"""A real gRPC client and a real gRPC server with the gateway between them: `grpcio` on both sides, over h2c and over TLS.

What the fields and frames look like is the business of the Rust tests; here the question is whether the library of a
service is content with them. Messages are octets as they are, so no protoc is needed.
"""

import concurrent.futures
import os
import queue
import threading

import grpc
import pytest
from conftest import certificate
from harness import Gateway, free_address

SOON = 10.0  # seconds; a debug build on a busy machine
FRONT = {"h2c": "", "tls": ", tls: { certificate: server.crt, private_key: server.key }"}
CONFIG = """
listen:
  public: {{ address: "${{SEEME_GATEWAY_PUBLIC}}"{tls} }}
  admin:  {{ address: "${{SEEME_GATEWAY_ADMIN}}" }}
store: {{ url: "${{SEEME_GATEWAY_STORE}}" }}
upstreams:
  here: {{ endpoints: ["${{SEEME_GATEWAY_UPSTREAM}}"], http2: true }}
  gone: {{ endpoints: ["http://{gone}"], http2: true }}
routes:
  - {{ match: "POST /edge.Echo/{{method}}", scope: anything:use, upstream: here }}
  - {{ match: "POST /edge.Other/{{method}}", scope: other:use, upstream: here }}
  - {{ match: "POST /edge.Gone/{{method}}", scope: anything:use, upstream: gone }}
"""


class Echo(grpc.GenericRpcHandler):
    """The server: each kind of call, one that fails, and one that waits until nobody wants it any more."""

    def __init__(self):
        self.given_up = queue.Queue()

    def service(self, details):
        service, method = details.method.strip("/").split("/")
        if service != "edge.Echo":
            return None
        made = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Download": grpc.unary_stream_rpc_method_handler(lambda request, _: (b"%d" % n for n in range(int(request)))),
            "Upload": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"%d" % sum(map(len, requests))),
            "Chat": grpc.stream_stream_rpc_method_handler(lambda requests, _: (b"you said " + said for said in requests)),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "FailLate": grpc.unary_stream_rpc_method_handler(self.fail_late),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "WaitInTheMiddle": grpc.unary_stream_rpc_method_handler(self.wait_in_the_middle),
        }
        return made.get(method)

    def unary(self, request, context):
        seen = context.invocation_metadata()
        context.send_initial_metadata(tuple((f"saw-{item.key}", item.value) for item in seen if item.key != "user-agent"))
        context.set_trailing_metadata((("x-last", "words"), ("x-octets-bin", bytes(range(256)))))
        return request

    def fail(self, request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", request), ("x-why", "because")))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "grün, 100 %\nno")

    def fail_late(self, request, context):
        yield b"first"
        yield b"second"
        context.abort(grpc.StatusCode.DATA_LOSS, "no third")

    def wait(self, request, context):
        ended = threading.Event()
        left = context.time_remaining()
        context.add_callback(ended.set)
        self.given_up.put((request, left, ended.wait(SOON)))
        return request

    def wait_in_the_middle(self, request, context):
        yield b"first"
        yield self.wait(request, context)


class Through:
    """A gateway, the server behind it, and a channel to it."""

    def __init__(self, front, folder):
        self.echo = Echo()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(32), [self.echo])
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        certificate(folder)
        config = folder / "gateway.yaml"
        config.write_text(CONFIG.format(tls=FRONT[front], gone=free_address()))
        self.gateway = Gateway(folder / "run", upstream=f"127.0.0.1:{port}", config=config)
        self.key = self.gateway.key("anything:use", environment="test")
        self.metadata = (("authorization", f"Bearer {self.key['key']}"),)
        self.ca = (folder / "server.crt").read_bytes() if front == "tls" else None
        self.channel = self.open()

    def open(self, call_credentials=None):
        options = [("grpc.enable_http_proxy", 0)]
        if self.ca is None:
            return grpc.insecure_channel(self.gateway.address, options)
        credentials = grpc.ssl_channel_credentials(self.ca)
        if call_credentials:
            credentials = grpc.composite_channel_credentials(credentials, call_credentials)
        return grpc.secure_channel(f"localhost:{self.gateway.address.rsplit(':', 1)[1]}", credentials, options)

    def unary(self, method="edge.Echo/Unary", request=b"hello", metadata=None, **options):
        """The answer and the call, whose code, details and metadata can be asked for."""
        call = self.channel.unary_unary(f"/{method}")
        metadata = self.metadata if metadata is None else metadata
        return call.with_call(request, metadata=metadata, timeout=options.pop("timeout", SOON), **options)

    def refused(self, *arguments, **options) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            self.unary(*arguments, **options)
        return refused.value

    def stop(self):
        self.channel.close()
        assert self.gateway.stop() == 0
        self.server.stop(None).wait(SOON)


@pytest.fixture(scope="module", params=list(FRONT))
def through(request, tmp_path_factory):
    running = Through(request.param, tmp_path_factory.mktemp(request.param))
    yield running
    running.stop()


def test_a_unary_call_has_metadata_both_ways_and_the_server_learns_who_calls(through):
    sent = (*through.metadata, ("x-said", "something"), ("x-octets-bin", bytes(range(256))))
    answer, call = through.unary(metadata=sent)
    assert (answer, call.code()) == (b"hello", grpc.StatusCode.OK)
    first, last = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert (first["saw-x-said"], first["saw-x-octets-bin"]) == ("something", bytes(range(256)))
    assert (first["saw-x-seeme-key-id"], first["saw-x-seeme-environment"]) == (through.key["id"], "test")
    assert "saw-authorization" not in first, "the key is not the server's business"
    assert first["x-request-id"] and int(first["x-ratelimit-remaining"]) > 0
    assert (last["x-last"], last["x-octets-bin"]) == ("words", bytes(range(256)))


def test_messages_of_every_size_pass_compressed_or_not(through):
    for size in (0, 1, 16_384, 65_536, 4_000_000):
        message = os.urandom(size)
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            assert through.unary(request=message, compression=compression)[0] == message


def test_a_stream_from_the_server_comes_whole_and_in_order(through):
    call = through.channel.unary_stream("/edge.Echo/Download")(b"5000", metadata=through.metadata, timeout=SOON)
    assert list(call) == [b"%d" % number for number in range(5000)]
    assert call.code() == grpc.StatusCode.OK


def test_a_stream_from_the_client_is_answered_once(through):
    upload = through.channel.stream_unary("/edge.Echo/Upload")
    pieces = (b"x" * 1000 for _ in range(5000))
    assert upload(pieces, metadata=through.metadata, timeout=SOON) == b"5000000"


def test_in_a_conversation_each_side_hears_the_other_before_it_goes_on(through):
    said = queue.Queue()
    chat = through.channel.stream_stream("/edge.Echo/Chat")
    heard = chat(iter(said.get, None), metadata=through.metadata, timeout=SOON)
    for number in range(100):
        said.put(b"%d" % number)
        assert next(heard) == b"you said %d" % number
    said.put(None)
    assert list(heard) == []
    assert heard.code() == grpc.StatusCode.OK


def test_a_hundred_calls_at_once_on_one_channel_are_not_mixed_up(through):
    call = through.channel.unary_unary("/edge.Echo/Unary")
    calls = [call.future(b"%d" % number, metadata=through.metadata, timeout=SOON) for number in range(100)]
    assert [each.result() for each in calls] == [b"%d" % number for number in range(100)]


def test_an_error_of_the_server_comes_as_it_was_made(through):
    details = os.urandom(100)
    error = through.refused("edge.Echo/Fail", details)
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "grün, 100 %\nno")
    last = dict(error.trailing_metadata())
    assert (last["grpc-status-details-bin"], last["x-why"]) == (details, "because")
    assert through.refused("edge.Echo/NoSuchMethod").details() == "Method not found!", "the server's words, not ours"


def test_an_error_after_messages_comes_after_them(through):
    call = through.channel.unary_stream("/edge.Echo/FailLate")(b"", metadata=through.metadata, timeout=SOON)
    assert (next(call), next(call)) == (b"first", b"second")
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.DATA_LOSS, "no third")


def test_the_server_hears_of_a_call_that_is_cancelled(through):
    # There is no deadline here that the server could keep by itself.
    waiting = through.channel.unary_stream("/edge.Echo/WaitInTheMiddle")(b"cancel", metadata=through.metadata)
    assert next(waiting) == b"first"
    waiting.cancel()
    request, left, heard = through.echo.given_up.get(timeout=2 * SOON)
    assert (request, heard) == (b"cancel", True)
    assert left > 1e9, "no deadline is made up on the way"
    assert waiting.code() == grpc.StatusCode.CANCELLED


def test_a_deadline_is_told_to_the_server_and_ends_the_call_on_both_sides(through):
    error = through.refused("edge.Echo/Wait", b"deadline", timeout=0.5)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    request, left, heard = through.echo.given_up.get(timeout=2 * SOON)
    assert (request, heard) == (b"deadline", True)
    assert 0 < left < 1


def test_refusals_of_the_gateway_are_statuses_with_words(through):
    unknown = (("authorization", f"Bearer {through.key['key']}x"),)
    for method, metadata, code, words in (
        ("edge.Echo/Unary", (), grpc.StatusCode.UNAUTHENTICATED, "key"),
        ("edge.Echo/Unary", unknown, grpc.StatusCode.UNAUTHENTICATED, "key"),
        ("edge.Other/Unary", None, grpc.StatusCode.PERMISSION_DENIED, "other:use"),
        ("edge.Nobody/Unary", None, grpc.StatusCode.UNIMPLEMENTED, "route"),
        ("edge.Gone/Unary", None, grpc.StatusCode.UNAVAILABLE, "backend"),
    ):
        error = through.refused(method, metadata=metadata)
        assert error.code() == code, (method, error)
        assert words in error.details(), (method, error.details())
    # Streams are refused likewise, and the channel is as good as before.
    with pytest.raises(grpc.RpcError) as error:
        through.channel.stream_unary("/edge.Echo/Upload")(iter([b"x"] * 100), timeout=SOON)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert through.unary()[0] == b"hello"


def test_a_plan_that_is_used_up_is_resource_exhausted(through):
    limits = ["--plan", "enterprise", "--requests-per-minute", "1", "--requests-per-day", "100"]
    through.gateway.cli("accounts", "set", "small", *limits)
    key = through.gateway.key("anything:use", account="small")
    metadata = (("authorization", f"Bearer {key['key']}"),)
    through.unary(metadata=metadata)
    # Three, should a new minute begin between them.
    errors = []
    for _ in range(3):
        try:
            through.unary(metadata=metadata)
        except grpc.RpcError as error:
            errors.append(error)
    assert errors and {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    last = {**dict(errors[0].initial_metadata()), **dict(errors[0].trailing_metadata())}
    assert last["x-ratelimit-remaining"] == "0" and 1 <= int(last["retry-after"]) <= 60


def test_a_key_may_come_as_the_librarys_own_call_credentials(through):
    if through.ca is None:
        return  # the library sends them over TLS only
    with through.open(grpc.access_token_call_credentials(through.key["key"])) as channel:
        assert channel.unary_unary("/edge.Echo/Unary")(b"hello", timeout=SOON) == b"hello"
