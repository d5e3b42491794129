"""The SeeMe.ai client with the API-key calls of the user documentation.

The published ``seeme`` package (0.43.2) can create a key only with a name and an expiry and cannot limit, change or
measure it. This subclass adds that, talks to ``/api/v1/api-keys`` of the gateway and leaves all else to the package::

    from seeme_keys import Client

    client = Client(apikey="sm_live_...")
    key = client.create_api_key(name="Inference Only", scopes=["models:predict"], expires_in_days=90)
    print(key.key)  # this once

Needs ``pip install seeme``. Copy the file into a project; it keeps no state and writes nothing.
"""

import os
from typing import Any, Dict, List, Optional

import requests
import seeme
from dotenv import dotenv_values
from pydantic import BaseModel, Field
from seeme.types import APIKeyResponse

DEFAULT_BACKEND = "https://api.seeme.ai/api/v1/"

# The package sends an Authorization header only when it is given a username as well. A key alone names its account, so
# what stands here is not looked at by anyone.
PLACEHOLDER_USERNAME = "api-key"

_UNCHANGED: Any = type("Unchanged", (), {"__repr__": lambda self: "UNCHANGED"})()


class APIKey(APIKeyResponse):
    """A key as the gateway describes it. ``key``, the secret, is set only on the object that created it."""

    key: Optional[str] = Field(default=None, repr=False)  # not in logs by accident
    scopes: List[str] = []
    environment: Optional[str] = None
    account_id: Optional[str] = None
    organization_id: Optional[str] = None
    plan: Optional[str] = None
    model_ids: Optional[List[str]] = None
    dataset_ids: Optional[List[str]] = None
    created_by: Optional[str] = None


class APIKeyUsage(BaseModel):
    """What a key was used for between two days, both included."""

    total_requests: int
    successful: int
    failed: int
    by_endpoint: Dict[str, Dict[str, int]] = {}
    by_day: List[Dict[str, Any]] = []
    by_status: Dict[str, int] = {}
    last_used_at: Optional[str] = None


class Client(seeme.Client):
    """``seeme.Client`` that an API key alone is enough for, with the whole life of API keys.

    What is not given comes from ``.env``, then from the environment: SEEME_API_KEY, SEEME_USERNAME and SEEME_BACKEND
    (the gateway, with its ``/api/v1``).
    """

    def __init__(
        self,
        username: Optional[str] = None,
        apikey: Optional[str] = None,
        backend: Optional[str] = None,
        env_file: str = ".env",
    ):
        env = {**os.environ, **{name: value for name, value in dotenv_values(env_file).items() if value}}
        apikey = apikey or env.get("SEEME_API_KEY")
        super().__init__(
            # Without a key the client is one that still has to log in; a username then has no use.
            username=(username or env.get("SEEME_USERNAME") or PLACEHOLDER_USERNAME) if apikey else None,
            apikey=apikey,
            backend=backend or env.get("SEEME_BACKEND") or DEFAULT_BACKEND,
            env_file=env_file,
        )

    def create_api_key(
        self,
        name: str,
        scopes: Optional[List[str]] = None,
        model_ids: Optional[List[str]] = None,
        dataset_ids: Optional[List[str]] = None,
        organization_id: Optional[str] = None,
        expires_in_days: Optional[int] = None,
        expires_at: Optional[str] = None,
    ) -> APIKey:
        """Creates a key that may do no more than the one in use. Its secret, ``.key``, is shown this once.

        ``model_ids`` and ``dataset_ids`` limit it to these; None is no limit. ``expires_at`` is RFC 3339, for example
        ``2030-06-30T23:59:59Z``; give it or ``expires_in_days``, or neither.
        """
        wanted = {
            "name": name,
            "scopes": scopes,
            "model_ids": model_ids,
            "dataset_ids": dataset_ids,
            "organization_id": organization_id,
            "expires_in_days": expires_in_days,
            "expires_at": expires_at,
        }
        body = {member: value for member, value in wanted.items() if value is not None}
        return APIKey(**self._api_keys("POST", json=body))

    def get_api_keys(self) -> List[APIKey]:
        """All keys of the account, newest first, without their secrets."""
        return [APIKey(**key) for key in self._api_keys("GET")]

    def update_api_key(
        self,
        api_key_id: str,
        disabled: bool = _UNCHANGED,
        name: str = _UNCHANGED,
        scopes: List[str] = _UNCHANGED,
        model_ids: Optional[List[str]] = _UNCHANGED,
        dataset_ids: Optional[List[str]] = _UNCHANGED,
        expires_at: Optional[str] = _UNCHANGED,
    ) -> APIKey:
        """Changes what is given and nothing else. A list replaces the old one; None takes a limit or an expiry away."""
        wanted = {
            "disabled": disabled,
            "name": name,
            "scopes": scopes,
            "model_ids": model_ids,
            "dataset_ids": dataset_ids,
            "expires_at": expires_at,
        }
        changes = {member: value for member, value in wanted.items() if value is not _UNCHANGED}
        return APIKey(**self._api_keys("PATCH", api_key_id, json=changes))

    def delete_api_key(self, api_key_id: str) -> Dict[str, Any]:
        """Ends a key for good. ``acknowledged`` in the answer tells how many gateways already refuse it."""
        return self._api_keys("DELETE", api_key_id)

    def get_api_key_usage(
        self, api_key_id: str, start_date: Optional[str] = None, end_date: Optional[str] = None
    ) -> APIKeyUsage:
        """Requests between two days like ``2030-01-31``, both included; the last 30 days when none is given."""
        days = {"start_date": start_date, "end_date": end_date}
        return APIKeyUsage(**self._api_keys("GET", api_key_id, "usage", params=days))

    def _api_keys(self, method: str, *path: str, **request: Any) -> Any:
        """One call to the management API. A refusal raises requests.HTTPError, whose text says what is missing."""
        self.requires_login()
        url = "/".join([self.crud_endpoint("api-keys"), *(requests.utils.quote(part, safe="") for part in path)])
        response = requests.request(method, url, headers=self.headers, **request)
        response.raise_for_status()
        return response.json()
