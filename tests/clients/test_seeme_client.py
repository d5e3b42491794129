"""The published seeme client, unchanged, in front of the gateway."""

import pathlib
import uuid

import pytest
import requests
import seeme
from harness import MODEL_A, MODEL_B, bearer, eventually
from seeme.types import ApplicationType, Model


def sdk(gateway, key) -> seeme.Client:
    """The client as its documentation says: a username and a key, or no header is sent."""
    return seeme.Client(username="someone", apikey=key["key"], backend=gateway.api)


@pytest.fixture
def picture(tmp_path) -> str:
    file = tmp_path / "cat.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 64)
    return str(file)


def test_constructing_the_client_reads_the_applications_with_any_key(gateway):
    client = sdk(gateway, gateway.key("models:predict"))
    assert client.applications
    assert all(isinstance(application, seeme.Application) for application in client.applications)


def test_the_client_finds_its_key_in_a_dotenv_file(gateway):
    key = gateway.key("models:read")["key"]
    lines = ["SEEME_USERNAME=someone", f"SEEME_API_KEY={key}", f"SEEME_BACKEND={gateway.api}"]
    pathlib.Path(".env").write_text("\n".join(lines))
    assert seeme.Client().get_models()


def test_constructing_the_client_with_an_unknown_key_says_unauthorized(gateway):
    with pytest.raises(requests.HTTPError, match="401 Client Error"):
        sdk(gateway, {"key": "sm_live_thisIsNoKey"})


def test_a_key_with_models_predict_alone_predicts(gateway, picture):
    client = sdk(gateway, gateway.key("models:predict"))
    from_file = client.predict(MODEL_A, picture)
    assert from_file.inference_items
    from_text = client.predict(MODEL_A, "some text", ApplicationType.TEXT_CLASSIFICATION)
    assert from_text.id


def test_the_clients_own_name_for_predicting_is_as_good(gateway, picture):
    assert sdk(gateway, gateway.key("inferences:create")).predict(MODEL_A, picture).inference_items


def test_a_key_with_models_predict_alone_is_told_which_scope_listing_needs(gateway):
    client = sdk(gateway, gateway.key("models:predict"))
    with pytest.raises(requests.HTTPError) as refused:
        client.get_models()
    assert "403" in str(refused.value)
    assert "Missing scope models:read" in str(refused.value)


def test_a_key_with_models_read_reads_and_nothing_more(gateway):
    client = sdk(gateway, gateway.key("models:read"))
    assert MODEL_A in [model.id for model in client.get_models()]
    assert client.get_model(MODEL_A).id == MODEL_A
    with pytest.raises(requests.HTTPError, match="Missing scope models:create"):
        client.create_model(Model(name="another"))
    with pytest.raises(requests.HTTPError, match="Missing scope models:predict"):
        client.predict(MODEL_A, "some text", ApplicationType.TEXT_CLASSIFICATION)


def test_a_key_limited_to_a_model_predicts_on_it_and_on_no_other(gateway, picture):
    client = sdk(gateway, gateway.key("models:predict", "models:read", model_ids=[MODEL_A]))
    assert client.predict(MODEL_A, picture).inference_items
    with pytest.raises(requests.HTTPError, match="403 Client Error"):
        client.predict(MODEL_B, picture)
    with pytest.raises(requests.HTTPError, match="403 Client Error"):
        client.get_model(MODEL_B)
    refusal = requests.post(f"{gateway.api}inferences/{MODEL_B}", json={}, headers=dict(client.headers))
    assert refusal.json()["code"] == "resource_not_allowed"


def test_a_disabled_key_is_refused_and_works_again_once_enabled(gateway):
    key = gateway.key("models:read")
    client = sdk(gateway, key)
    gateway.cli("keys", "disable", key["id"])
    assert eventually(lambda: status(client) == 401)
    gateway.cli("keys", "enable", key["id"])
    assert eventually(lambda: status(client) == 200)


def test_a_model_is_uploaded_and_downloaded_as_the_backend_has_it(gateway, tmp_path):
    key = gateway.key("models:read", "models:upload")
    client = sdk(gateway, key)
    (tmp_path / "export.pkl").write_bytes(bytes(2_000_000))
    assert client.upload_model(MODEL_A, folder=str(tmp_path), filename="export.pkl")
    client.download_active_model(client.get_model(MODEL_A), download_folder=str(tmp_path / "got"))
    (downloaded,) = (tmp_path / "got").iterdir()
    direct = requests.get(f"{gateway.backend_url}/api/v1/models/{MODEL_A}/download/pkl")
    assert downloaded.read_bytes() == direct.content != b""


def test_logging_in_needs_no_key(gateway):
    answer = requests.post(f"{gateway.api}login", json={"username": "someone", "password": "something"})
    assert answer.status_code == 200
    assert answer.json()["username"]


# -- The key calls of the published client, at /api/v1/me/apikeys ---------------------------------------------------


def test_the_published_client_creates_lists_and_deletes_keys(gateway):
    client = sdk(gateway, gateway.key("api-keys:read", "api-keys:write", "models:read"))
    name = f"published {uuid.uuid4()}"

    # It sends no Content-Type, "scopes": [] and nulls; without scopes the new key has those of its creator.
    created = client.create_api_key(name, expires_in_days=30)
    gateway.secrets.append(created.key)
    assert created.key.startswith("sm_live_") and len(created.key) == len("sm_live_") + 38
    assert created.key_prefix == created.key[:12]
    assert created.expires_at and not created.disabled
    assert sorted(created.scopes) == ["api-keys:read", "api-keys:write", "models:read"]
    assert requests.get(f"{gateway.api}models", headers=bearer(created.key)).status_code == 200

    listed = {key.id: key for key in client.get_api_keys()}
    assert listed[created.id].name == name
    assert all(key.key is None for key in listed.values())

    client.delete_api_key(created.id)
    refusal = requests.get(f"{gateway.api}models", headers=bearer(created.key))
    assert refusal.status_code == 401
    assert created.id not in [key.id for key in client.get_api_keys()]


def test_managing_keys_needs_its_own_scope(gateway):
    client = sdk(gateway, gateway.key("models:read"))
    with pytest.raises(requests.HTTPError, match="Missing scope api-keys:read"):
        client.get_api_keys()
    with pytest.raises(requests.HTTPError, match="Missing scope api-keys:write"):
        client.create_api_key("never")


def status(client) -> int:
    return requests.get(client.endpoints["models"], headers=client.headers).status_code
