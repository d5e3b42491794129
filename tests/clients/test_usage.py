"""What the gateway counted for a key is what its client counted, and the limits in the headers are the account's."""

import collections

import requests
from harness import MODEL_A, MODEL_B, bearer, eventually

# One round: eleven requests that end in every way a client can see, but for a rate limit.
ROUND = [
    # method, path, body, endpoint
    ("GET", "/api/v1/models", None, "GET /api/v1/models"),
    ("GET", f"/api/v1/models/{MODEL_A}", None, "GET /api/v1/models/{model_id}"),
    ("GET", f"/api/v1/models/{MODEL_B}", None, "GET /api/v1/models/{model_id}"),  # another model: 403
    ("POST", "/api/v1/models", {"name": "x"}, "POST /api/v1/models"),  # no scope: 403
    ("DELETE", f"/api/v1/models/{MODEL_A}", None, "DELETE /api/v1/models/{model_id}"),  # no scope: 403
    ("POST", f"/api/v1/inferences/{MODEL_A}", {"input_text": "x"}, "POST /api/v1/inferences/{model_id}"),
    ("POST", f"/api/v1/inferences/{MODEL_A}", {"input_text": "y"}, "POST /api/v1/inferences/{model_id}"),
    ("POST", f"/api/v1/inferences/{MODEL_B}", {"input_text": "z"}, "POST /api/v1/inferences/{model_id}"),  # 403
    ("GET", "/api/v1/applications", None, "GET /api/v1/applications"),
    ("POST", "/v1/chat/completions", {"model": MODEL_A, "messages": []}, "POST /v1/chat/completions"),
    ("POST", "/v1/chat/completions", {"model": MODEL_B, "messages": []}, "POST /v1/chat/completions"),  # 403
]
REQUESTS = 100


def test_usage_after_a_hundred_mixed_requests_is_the_clients_own_count(gateway):
    from seeme_keys import Client

    key = gateway.key("models:read", "models:predict", model_ids=[MODEL_A])
    counted = collections.defaultdict(lambda: {"total": 0, "successful": 0, "failed": 0})
    with requests.Session() as session:
        session.headers.update(bearer(key))
        for number in range(REQUESTS):
            method, path, body, endpoint = ROUND[number % len(ROUND)]
            answer = session.request(method, gateway.url + path, json=body)
            assert answer.status_code in (200, 201, 403), f"{method} {path}: {answer.status_code} {answer.text}"
            counted[endpoint]["total"] += 1
            counted[endpoint]["successful" if answer.ok else "failed"] += 1

    reader = Client(apikey=gateway.key("api-keys:read")["key"], backend=gateway.api)

    def usage():
        return reader.get_api_key_usage(key["id"])

    # Counts reach the store a moment after the response; more than were sent would be as wrong as fewer.
    eventually(lambda: usage().total_requests >= REQUESTS, within=10, every=0.25)
    found = usage()
    assert found.total_requests == REQUESTS
    assert found.successful == sum(endpoint["successful"] for endpoint in counted.values())
    assert found.failed == sum(endpoint["failed"] for endpoint in counted.values())
    assert found.successful and found.failed
    assert found.by_endpoint == dict(counted)
    assert sum(day["total"] for day in found.by_day) == REQUESTS
    assert found.by_status["2xx"] == found.successful
    assert found.by_status["4xx"] == found.failed
    assert found.last_used_at


def test_an_admitted_request_tells_what_is_left_of_the_plan(gateway):
    account = gateway.account("a-pro-account", plan="pro")
    key = gateway.key("models:read", account=account)
    answers = [requests.get(f"{gateway.api}models", headers=bearer(key)) for _ in range(3)]
    assert [answer.headers["X-RateLimit-Limit"] for answer in answers] == ["300"] * 3
    windows = {answer.headers["X-RateLimit-Reset"] for answer in answers}
    if len(windows) == 1:  # else the minute ended meanwhile, and with it the count
        assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["299", "298", "297"]
    assert all(int(reset) % 60 == 0 for reset in windows)


def test_a_free_account_is_refused_past_its_sixty_a_minute(gateway):
    account = gateway.account("a-free-account", plan="free")
    key = gateway.key("models:read", account=account)
    with requests.Session() as session:
        session.headers.update(bearer(key))
        # Two minutes may meet in here, so at most 120 are admitted.
        answers = [session.get(f"{gateway.api}models") for _ in range(130)]
    refused = [answer for answer in answers if answer.status_code == 429]
    minutes = {answer.headers["X-RateLimit-Reset"] for answer in answers}
    admitted = collections.Counter(answer.headers["X-RateLimit-Reset"] for answer in answers if answer.ok)
    assert refused and len(refused) + sum(admitted.values()) == len(answers)
    assert max(admitted.values()) == 60 and len(minutes) <= 2
    assert refused[0].json()["code"] == "rate_limited"
    assert 0 < int(refused[0].headers["Retry-After"]) <= 60
