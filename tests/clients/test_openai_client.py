"""The published openai client: chat completions whole and streamed, and the model that the body names."""

import http.server
import json
import threading

import openai
import pytest
import requests
from harness import MODEL_A, MODEL_B, Gateway, bearer

MESSAGES = [{"role": "user", "content": "Say something."}]


def client(gateway, key) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key["key"], max_retries=0)


def test_a_chat_completion_is_answered(gateway):
    answer = client(gateway, gateway.key("models:predict")).chat.completions.create(model=MODEL_A, messages=MESSAGES)
    assert answer.choices[0].message.content


def test_the_openai_client_of_the_seeme_client_works(gateway):
    import seeme

    key = gateway.key("models:predict")
    derived = seeme.Client(username="someone", apikey=key["key"], backend=gateway.api).openai_client()
    assert derived.chat.completions.create(model=MODEL_A, messages=MESSAGES).choices


def test_a_streamed_completion_has_the_text_of_the_whole_one(gateway):
    chat = client(gateway, gateway.key("models:predict")).chat.completions
    whole = chat.create(model=MODEL_A, messages=MESSAGES).choices[0].message.content
    chunks = [chunk for chunk in chat.create(model=MODEL_A, messages=MESSAGES, stream=True) if chunk.choices]
    assert len(chunks) > 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_naming_another_model_than_the_key_is_limited_to_is_forbidden(gateway):
    limited = client(gateway, gateway.key("models:predict", model_ids=[MODEL_A])).chat.completions
    assert limited.create(model=MODEL_A, messages=MESSAGES).choices
    for stream in (False, True):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            limited.create(model=MODEL_B, messages=MESSAGES, stream=stream)
        assert refused.value.response.json()["code"] == "resource_not_allowed"


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "%(a)s", "model": "%(b)s", "messages": []}',
        '{"model": "%(b)s", "model": "%(a)s", "messages": []}',
        '{"model": "%(a)s", "Model": "%(b)s", "messages": []}',
        '{"model": "%(a)s", "mod\\u0065l": "%(b)s", "messages": []}',
        '{"model": ["%(a)s"], "messages": []}',
        '{"messages": []}',
    ],
)
def test_a_limited_key_cannot_smuggle_another_model_in(gateway, body):
    key = gateway.key("models:predict", model_ids=[MODEL_A])
    text = body % {"a": MODEL_A, "b": MODEL_B}
    answer = requests.post(f"{gateway.url}/v1/chat/completions", data=text, headers=bearer(key))
    assert answer.status_code in (400, 403), answer.text


def test_the_models_are_listed_for_models_read_only(gateway):
    assert MODEL_A in [model.id for model in client(gateway, gateway.key("models:read")).models.list()]
    with pytest.raises(openai.PermissionDeniedError, match="Missing scope models:read"):
        client(gateway, gateway.key("models:predict")).models.list()


def test_embeddings_need_models_predict(gateway):
    with pytest.raises(openai.PermissionDeniedError, match="Missing scope models:predict"):
        client(gateway, gateway.key("models:read")).embeddings.create(model=MODEL_A, input="word")
    assert client(gateway, gateway.key("models:predict")).embeddings.create(model=MODEL_A, input="word").data


# -- Chunk by chunk -------------------------------------------------------------------------------------------------


class OneChunkAtATime(http.server.BaseHTTPRequestHandler):
    """Streams a completion and sends each chunk only when the client has told that it saw the one before."""

    protocol_version = "HTTP/1.1"
    seen = threading.Semaphore(0)
    words = ["one ", "two ", "three"]

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in self.words:
            self.event(json.dumps({**CHUNK, "choices": [{"index": 0, "delta": {"content": word}}]}))
            if not self.seen.acquire(timeout=10):
                self.close_connection = True  # the stream ends without its last chunk, which the client reports
                return
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def log_message(self, *_):
        """Keeps the output of the test run to itself."""


CHUNK = {"id": "c-1", "object": "chat.completion.chunk", "created": 0, "model": MODEL_A}


@pytest.fixture
def reluctant_gateway(tmp_path):
    """A gateway in front of a backend that waits for its reader."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneChunkAtATime) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        running = Gateway(tmp_path / "reluctant", upstream="127.0.0.1:%d" % backend.server_port)
        yield running
        running.stop()
        backend.shutdown()


def test_chunks_arrive_as_the_backend_sends_them(reluctant_gateway):
    key = reluctant_gateway.key("models:predict")
    arrived = []
    for chunk in client(reluctant_gateway, key).chat.completions.create(model=MODEL_A, messages=MESSAGES, stream=True):
        arrived.append(chunk.choices[0].delta.content)
        OneChunkAtATime.seen.release()
    assert arrived == OneChunkAtATime.words
