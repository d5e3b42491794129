"""Every snippet of the user documentation, taken from it when the test runs, does what the page says it does.

Changed are only: the import (`seeme_keys` for `seeme`), the host, credentials, and dates that are past. `boto3`, which
one snippet needs, is replaced by a module of three lines: AWS is not what is tested. Node.js runs the JavaScript where
it is installed.
"""

import datetime
import io
import json
import shutil
import subprocess
import sys
import types

import document
import dotenv
import pytest
import requests
from harness import MODEL_A, bearer, eventually
from seeme_keys import Client

TODAY = datetime.datetime.now(datetime.timezone.utc).date()
NEXT_YEAR = f"{TODAY.year + 1}-06-30T23:59:59Z"
# What the keys of the page are allowed, and to make and change keys.
MANAGER = ["models:*", "datasets:*", "workflows:execute", "api-keys:read", "api-keys:write"]


class RecordingClient(Client):
    """The client, which also keeps the keys that it creates, for their secrets to be looked for when the run ends."""

    def create_api_key(self, *arguments, **members):
        key = super().create_api_key(*arguments, **members)
        self.created.append(key)
        self.gateway.secrets.append(key.key)
        return key


class Page:
    """A reader of the page who follows it: a client, a key to try things on, and the means to run what is printed."""

    def __init__(self, gateway, monkeypatch, capsys, folder):
        self.gateway, self.monkeypatch, self.capsys, self.folder = gateway, monkeypatch, capsys, folder
        self.snippets = document.extract()
        self.secret = gateway.key(*MANAGER)["key"]
        self.client = RecordingClient(apikey=self.secret, backend=gateway.api)
        self.client.gateway, self.client.created = gateway, []
        monkeypatch.setenv("SEEME_BACKEND", gateway.api)  # the host, for snippets that make a client of their own

    def adapted(self, name: str) -> str:
        """The snippet with the changes that a reader has to make."""
        text = self.snippets[name]
        for printed, meant in {
            "from seeme import": "from seeme_keys import",
            "https://api.seeme.ai": self.gateway.url,
            "EXISTING_TOKEN": self.secret,
            "sm_live_xxxxxxxxxxxx": self.secret,
            "2024-06-30T23:59:59Z": NEXT_YEAR,
            "2024-01-01": str(TODAY - datetime.timedelta(days=1)),
            "2024-01-31": str(TODAY + datetime.timedelta(days=1)),  # the day may end while the test runs
        }.items():
            text = text.replace(printed, meant)
        return text

    def python(self, name: str, **known) -> dict:
        """Runs a Python snippet; returns its variables, with what it printed in `printed`."""
        variables = {"client": self.client, "Client": Client, **known}
        self.capsys.readouterr()
        self.client.created = []
        exec(compile(self.adapted(name), f"<{name}>", "exec"), variables)
        variables["printed"] = self.capsys.readouterr().out
        return variables

    def shell(self, name: str) -> str:
        """Runs a curl snippet as it stands; returns the body of the answer."""
        done = subprocess.run(["bash", "-c", self.adapted(name)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def keys_of(self, name: str, **known) -> list:
        """Runs a Python snippet; the keys that it created, in order."""
        self.python(name, **known)
        return self.client.created

    def new_key(self, *scopes):
        """A key of the same account, as the management API shows it."""
        made = self.gateway.key(*scopes)
        return made, next(key for key in self.client.get_api_keys() if key.id == made["id"])

    def status(self, secret: str, path: str = "applications") -> int:
        return requests.get(self.gateway.api + path, headers=bearer(secret)).status_code

    def predict(self, secret: str, model: str = MODEL_A) -> int:
        url = f"{self.gateway.api}inferences/{model}"
        return requests.post(url, json={"input_text": "text"}, headers=bearer(secret)).status_code


@pytest.fixture
def page(gateway, monkeypatch, capsys, tmp_path):
    return Page(gateway, monkeypatch, capsys, tmp_path)


def days_until(time: str) -> int:
    """Whole days from now until an RFC 3339 time."""
    end = datetime.datetime.fromisoformat(time[:19] + "+00:00")
    return (end - datetime.datetime.now(datetime.timezone.utc)).days


# -- Create, scopes, limits, expiry ---------------------------------------------------------------------------------


def create(page):
    printed = page.python("create")["printed"].splitlines()
    (key,) = page.client.created
    assert printed == [f"API Key: {key.key}", f"Key ID: {key.id}", f"Prefix: {key.key[:12]}"]
    assert page.status(key.key, "models") == 200 and page.status(key.key, "datasets") == 200
    assert page.predict(key.key) == 200


def create_rest(page):
    key = json.loads(page.shell("create_rest"))
    page.gateway.secrets.append(key["key"])
    assert key["name"] == "Production Inference" and key["scopes"] == ["models:predict"]
    assert 89 <= days_until(key["expires_at"]) <= 90
    assert page.predict(key["key"]) == 200 and page.status(key["key"], "models") == 403


def basic_scopes(page):
    viewer, inference, manager = created = page.keys_of("basic_scopes")
    assert [key.name for key in created] == ["Model Viewer", "Inference Only", "Model Manager"]
    reads = [page.status(key.key, f"models/{MODEL_A}") for key in (viewer, inference, manager)]
    predictions = [page.predict(key.key) for key in (viewer, inference, manager)]
    assert reads == [200, 403, 200]
    assert predictions == [403, 200, 200]


def resource_specific(page):
    models, datasets = page.keys_of("resource_specific")
    assert models.model_ids == ["model-uuid-1", "model-uuid-2"]
    assert [page.predict(models.key, f"model-uuid-{number}") for number in (1, 2, 3)] == [200, 200, 403]
    assert datasets.dataset_ids == ["dataset-uuid-1"]
    assert [page.status(datasets.key, f"datasets/dataset-uuid-{number}") for number in (1, 2)] == [200, 403]


def organization_scoped(page):
    (key,) = page.keys_of("organization_scoped")
    assert key.organization_id == "org-uuid"
    assert page.predict(key.key) == 200


def expiration(page):
    days, date = page.keys_of("expiration")
    assert 29 <= days_until(days.expires_at) <= 30
    assert date.expires_at[:19] == NEXT_YEAR[:19]


def no_expiration(page):
    (key,) = page.keys_of("no_expiration")
    assert key.expires_at is None and page.status(key.key, "models") == 200


# -- Use ------------------------------------------------------------------------------------------------------------


def use(page):
    assert MODEL_A in [model.id for model in page.python("use")["models"]]


def use_rest(page):
    assert MODEL_A in [model["id"] for model in json.loads(page.shell("use_rest"))]


def use_javascript(page):
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not installed")
    script = page.adapted("use_javascript") + "\nconsole.log(response.status, (await response.json()).length > 0);"
    done = subprocess.run([node, "--input-type=module"], input=script, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["200", "true"], done.stderr


# -- Manage ---------------------------------------------------------------------------------------------------------


def list_keys(page):
    fresh = page.client.create_api_key(name="Listed", scopes=["models:read"], expires_in_days=7)
    assert page.status(fresh.key, "models") == 200

    def listed():
        return next(key for key in page.client.get_api_keys() if key.id == fresh.id)

    assert eventually(lambda: listed().last_used_at, within=10, every=0.25)
    printed = page.python("list")["printed"]
    assert f"Listed: {fresh.key_prefix}... (Scopes: ['models:read'])\n Expires: " in printed
    assert f" Last used: {listed().last_used_at}" in printed
    assert fresh.key not in printed


def disable(page):
    made, key = page.new_key("models:read")
    off, on = page.adapted("disable").split("# Re-enable")
    exec(off, {"client": page.client, "key": key})
    assert page.status(made["key"], "models") == 401
    exec(on, {"client": page.client, "key": key})
    assert eventually(lambda: page.status(made["key"], "models") == 200)
    page.python("disable", key=key)  # and in one go


def delete(page):
    made, key = page.new_key("models:read")
    assert page.status(made["key"], "models") == 200
    page.python("delete", key=key)
    assert page.status(made["key"], "models") == 401
    assert key.id not in [left.id for left in page.client.get_api_keys()]


def rotate(page):
    made, old_key = page.new_key("models:read")
    (new_key,) = page.keys_of("rotate", old_key=old_key)
    assert new_key.name == f"{old_key.name} (Rotated)" and new_key.scopes == old_key.scopes
    assert page.status(new_key.key, "models") == 200
    assert page.status(made["key"], "models") == 401


# -- Keep secrets ---------------------------------------------------------------------------------------------------


def env_file(page):
    values = dotenv.dotenv_values(stream=io.StringIO(page.adapted("env_file")))
    assert values == {"SEEME_API_KEY": page.secret}
    (page.folder / ".env").write_text(page.adapted("env_file"))
    assert Client().get_models()  # the client finds it by itself


def env(page):
    values = dotenv.dotenv_values(stream=io.StringIO(page.adapted("env_file")))
    for name, value in values.items():
        page.monkeypatch.setenv(name, value)
    assert page.python("env")["client"].get_models()


def secret_manager(page):
    class SecretsManager:
        def get_secret_value(self, SecretId):
            assert SecretId == "seeme/api-key"
            return {"SecretString": json.dumps({"api_key": page.secret})}

    boto3 = types.ModuleType("boto3")
    boto3.client = {"secretsmanager": SecretsManager()}.__getitem__
    page.monkeypatch.setitem(sys.modules, "boto3", boto3)
    assert page.python("secret_manager")["client"].get_models()


# -- Limits, usage, production --------------------------------------------------------------------------------------


def rate_limit_headers(page):
    # The numbers of the page are those of a Pro account.
    key = page.gateway.key("models:read", account=page.gateway.account("reader-of-the-page", plan="pro"))
    answer = requests.get(f"{page.gateway.api}models", headers=bearer(key))
    for line in page.adapted("rate_limit_headers").splitlines():
        name, printed = line.split(": ")
        assert answer.headers[name].isdigit(), line
        if name == "X-RateLimit-Limit":
            assert answer.headers[name] == printed
    seconds_left = int(answer.headers["X-RateLimit-Reset"]) - datetime.datetime.now().timestamp()
    assert -1 < seconds_left <= 60


def usage(page):
    made, key = page.new_key("models:read")
    assert [page.status(made["key"], "models") for _ in range(3)] == [200] * 3
    assert page.predict(made["key"]) == 403
    eventually(lambda: page.client.get_api_key_usage(key.id).total_requests == 4, within=10, every=0.25)
    printed = page.python("usage", key=key)["printed"].splitlines()
    assert printed[:3] == ["Total requests: 4", "Successful: 3", "Failed: 1"]
    assert printed[3].startswith("By endpoint: {") and "'GET /api/v1/models': {'total': 3," in printed[3]


def production(page):
    picture = page.folder / "picture.jpg"
    picture.write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    page.monkeypatch.setenv("PRODUCTION_MODEL_ID", MODEL_A)
    page.monkeypatch.delenv("SEEME_PRODUCTION_KEY", raising=False)
    with pytest.raises(ValueError, match="SEEME_PRODUCTION_KEY"):
        page.python("production")

    allowed = page.gateway.key("models:predict")
    page.monkeypatch.setenv("SEEME_PRODUCTION_KEY", allowed["key"])
    assert page.python("production")["predict_image"](str(picture))

    forbidden = page.gateway.key("models:read")
    page.monkeypatch.setenv("SEEME_PRODUCTION_KEY", forbidden["key"])
    with pytest.raises(requests.HTTPError, match="Missing scope models:predict") as refused:
        page.python("production")["predict_image"](str(picture))
    assert page.capsys.readouterr().out == "Prediction failed: HTTPError\n"
    assert forbidden["key"] not in str(refused.value)


CHECKS = {
    check.__name__: check
    for check in (
        create, create_rest, basic_scopes, resource_specific, organization_scoped, expiration, no_expiration,
        use, use_rest, use_javascript, disable, delete, rotate, env_file, env, secret_manager,
        rate_limit_headers, usage, production,
    )
} | {"list": list_keys}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_snippet(page, name):
    CHECKS[name](page)


def test_every_snippet_of_the_page_is_run():
    code = {snippet.name for snippet in document.SNIPPETS if snippet.language != "mermaid"}
    assert code == set(CHECKS)
    assert document.code_outside() == []
