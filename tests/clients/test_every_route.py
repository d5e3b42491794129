"""Every call of the published client, line by line of the list of its calls: with the scope it needs, without a key, and
with a key that may do something else.

Which scope a call needs is written down here once more, on purpose: gateway.yaml is not asked. Who changes a scope there
has to change it here, and sees what that means for clients.
"""

import functools
import pathlib
import re

import pytest
import requests
from harness import bearer

LIST = pathlib.Path(__file__).parents[1] / "data" / "seeme-sdk-routes.tsv"

PUBLIC, ANY_KEY = "public", "any key"

# Methods, path and what the call needs; <> is one id. The first line that fits counts.
NEEDS = [
    ("POST", "/api/v1/(register|login)", PUBLIC),
    ("POST", "/api/v1/logout", ANY_KEY),
    ("GET", "/api/v1/(applications|me/context)", ANY_KEY),
    ("GET", "/api/v1/me/apikeys", "api-keys:read"),
    ("POST", "/api/v1/me/apikeys", "api-keys:write"),
    ("DELETE", "/api/v1/me/apikeys/<>", "api-keys:write"),
    ("GET", "/api/v1/permissions", "permissions:list"),
    ("GET", "/api/v1/share-roles", "roles:list"),
    ("DELETE", "/api/v1/users/<>", "users:*"),
    ("GET|POST|PUT|DELETE", "/admin/.*", "admin:*"),
    # predictions
    ("POST", "/v1/chat/completions", "models:predict"),
    ("POST", "/api/v1/inferences/.*", "models:predict"),
    ("PUT", "/api/v1/inferences/<>", "inferences:update"),
    ("GET", "/api/v1/inferences/<>/download", "inferences:read"),
    ("GET", "/api/v1/models/<>/inferences", "inferences:list"),
    # models
    ("GET", "/api/v1/models(/.*)?", "models:read"),
    ("POST", "/api/v1/models", "models:create"),
    ("PUT", "/api/v1/models/<>", "models:update"),
    ("DELETE", "/api/v1/models/<>", "models:delete"),
    ("POST", "/api/v1/models/<>(/versions/<>)?/upload", "models:upload"),
    ("POST|DELETE", "/api/v1/models/<>/share(/<>)?", "models:share"),
    ("POST", "/api/v1/models/<>/versions", "model_versions:create"),
    ("PUT", "/api/v1/models/<>/versions/<>", "model_versions:update"),
    ("DELETE", "/api/v1/models/<>/versions/<>", "model_versions:delete"),
    # datasets
    ("GET", "/api/v1/datasets/<>/post-processors(/jobs)?", "post_processors:list"),
    ("GET", "/api/v1/datasets/<>/post-processors/<>", "post_processors:read"),
    ("POST", "/api/v1/datasets/<>/post-processors", "post_processors:create"),
    ("PUT", "/api/v1/datasets/<>/post-processors/<>", "post_processors:update"),
    ("DELETE", "/api/v1/datasets/<>/post-processors/<>", "post_processors:delete"),
    ("POST", "/api/v1/datasets/<>/versions/<>/annotations", "annotations:create"),
    ("PUT", "/api/v1/datasets/<>/versions/<>/annotations/<>", "annotations:update"),
    ("DELETE", "/api/v1/datasets/<>/versions/<>/annotations/<>", "annotations:delete"),
    ("GET", "/api/v1/datasets/<>/versions/<>/labels", "dataset_labels:list"),
    ("GET", "/api/v1/datasets/<>/versions/<>/labels/(splits/)?<>", "dataset_labels:read"),
    ("POST", "/api/v1/datasets/<>/versions/<>/labels", "dataset_labels:create"),
    ("PUT|DELETE", "/api/v1/datasets/<>/versions/<>/labels/<>", "dataset_labels:update"),
    ("POST", "/api/v1/datasets/<>/versions/<>/splits", "dataset_splits:create"),
    ("PUT|DELETE", "/api/v1/datasets/<>/versions/<>/splits/<>", "dataset_splits:update"),
    ("POST", "/api/v1/datasets/<>/versions/<>/splits/<>/add_inferences", "dataset_items:create"),
    ("DELETE", "/api/v1/datasets/<>/versions/<>/splits/<>/items/<>", "dataset_items:update"),
    ("GET", "/api/v1/datasets/<>/versions/<>/(items|states)", "dataset_items:list"),
    ("GET", "/api/v1/datasets/<>/versions/<>/items/<>(/download|/state)?", "dataset_items:read"),
    ("POST", "/api/v1/datasets/<>/versions/<>/items", "dataset_items:create"),
    ("PUT", "/api/v1/datasets/<>/versions/<>/items/<>(/state)?", "dataset_items:update"),
    ("POST", "/api/v1/datasets/<>/versions/<>/items/<>/upload", "dataset_items:update"),
    ("POST", "/api/v1/datasets/<>/versions(/<>/new)?", "dataset_versions:create"),
    ("PUT", "/api/v1/datasets/<>/versions/<>", "dataset_versions:update"),
    ("POST", "/api/v1/datasets/<>/versions/<>/upload", "dataset_versions:update"),
    ("DELETE", "/api/v1/datasets/<>(/versions/<>)?", "datasets:delete"),
    ("GET", "/api/v1/datasets(/.*)?", "datasets:read"),
    ("POST", "/api/v1/datasets", "datasets:create"),
    ("PUT", "/api/v1/datasets/<>", "datasets:update"),
    ("POST", "/api/v1/datasets/<>/upload", "datasets:update"),
    ("POST", "/api/v1/datasets/<>/share", "datasets:share"),
    # workflows
    ("GET", "/api/v1/workflows/<>/executions", "workflow_executions:list"),
    ("GET", "/api/v1/workflows/<>/executions/<>(/input-file)?", "workflow_executions:read"),
    ("DELETE", "/api/v1/workflows/<>/executions/<>", "workflow_executions:*"),
    ("POST", "/api/v1/workflows/<>/executions/<>/(cancel|rerun)", "workflows:execute"),
    ("POST", "/api/v1/workflows/<>(/versions/<>)?/execute", "workflows:execute"),
    ("POST", "/api/v1/workflows/validate", "workflows:read"),
    # graphs
    ("POST", "/api/v1/graphs/<>/versions/<>/query", "graphs:read"),
    # organizations
    ("POST|PUT|DELETE", "/api/v1/organizations/<>/members(/.*)?", "organizations:manage_members"),
    ("GET", "/api/v1/organizations/<>/projects", "projects:read"),
    ("GET", "/api/v1/organizations/<>/teams", "teams:read"),
    ("GET", "/api/v1/organizations/<>/roles", "roles:read"),
]
# What is left is the same for each of these: the thing itself, and its parts.
for kind in ("jobs", "workflows", "graphs", "organizations", "projects", "teams", "roles"):
    NEEDS += [
        ("GET", f"/api/v1/{kind}", f"{kind}:list"),
        ("GET", f"/api/v1/{kind}/.*", f"{kind}:read"),
        ("POST", f"/api/v1/{kind}", f"{kind}:create"),
        ("DELETE", f"/api/v1/{kind}/<>", f"{kind}:delete"),
        ("POST|PUT|DELETE", f"/api/v1/{kind}/.*", f"{kind}:update"),
    ]

BODIES = {
    "/v1/chat/completions": {"model": "m-1", "messages": [{"role": "user", "content": "Say something."}]},
    "/api/v1/login": {"username": "someone", "password": "something"},
    "/api/v1/me/apikeys": {"name": "made by the walk", "scopes": [], "organization_id": None, "expires_in_days": None},
}


def needed(method: str, template: str) -> str:
    for methods, path, need in NEEDS:
        if method in methods.split("|") and re.fullmatch(path.replace("<>", r"\{\w+\}"), template):
            return need
    raise LookupError(f"{method} {template}: which scope does it need?")


def calls() -> list:
    """Method and path of each line; what deletes comes last and the deepest of it first, so that ids stay valid."""
    lines = [line.split("\t")[:2] for line in LIST.read_text().splitlines()[1:]]
    return sorted(map(tuple, lines), key=lambda call: (call[0] == "DELETE", -call[1].count("/")))


@pytest.fixture(scope="module")
def key_with(own_gateway):
    """A key with one scope, made once."""
    return functools.cache(own_gateway.key)


def send(gateway, method: str, template: str, key=None) -> requests.Response:
    path = re.sub(r"\{(\w+)_id\}", r"\1-1", template).replace("{resource_type}", "model")
    if template.endswith("/me/apikeys/{key_id}"):
        path = template.replace("{key_id}", gateway.key("models:read")["id"])
    body = BODIES.get(template, {"name": "walk"}) if method in ("POST", "PUT") else None
    headers = bearer(key) if key else {}
    answer = requests.request(method, gateway.url + path, json=body, headers=headers, timeout=20)
    if template == "/api/v1/me/apikeys" and answer.status_code == 201:
        gateway.secrets.append(answer.json()["key"])
    return answer


def test_the_whole_list_is_walked():
    assert len(calls()) == len(set(calls())) > 200


@pytest.mark.parametrize("method, template", calls())
def test_call(own_gateway, key_with, method, template):
    need = needed(method, template)
    with_another = key_with("jobs:delete" if need != "jobs:delete" else "graphs:delete")

    # With what it needs it is answered by the backend.
    if need == PUBLIC:
        enough = None
    elif need == ANY_KEY:
        enough = with_another
    else:
        enough = key_with(need)
    answer = send(own_gateway, method, template, enough)
    assert 200 <= answer.status_code < 300, f"{answer.status_code} {answer.reason} {answer.text}"
    assert answer.headers["X-Request-Id"]
    if need == PUBLIC:
        return

    # Without a key, and with a key that may do something else, it is refused in words that say what is missing.
    answer = send(own_gateway, method, template)
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_key")
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="seeme"')
    if need == ANY_KEY:
        return
    answer = send(own_gateway, method, template, with_another)
    assert (answer.status_code, answer.reason) == (403, f"Missing scope {need}")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "insufficient_scope"
    assert f'scope="{need}"' in answer.headers["WWW-Authenticate"]
