"""Takes the code out of the user documentation of API keys, which is the promise that the gateway has to keep.

`seeme-api-keys.txt` is the page as text: where a code block began and ended is lost, and so is the indentation of
Python. Each snippet is therefore named here by its first and last words, in the order of the page, with the depth of
its lines where they are not all at the margin. `code_outside` finds what was forgotten. Nothing here changes a word.
"""

import pathlib
import re
import typing

PAGE = pathlib.Path(__file__).with_name("seeme-api-keys.txt").read_text(encoding="utf-8")


class Snippet(typing.NamedTuple):
    name: str
    language: str
    first: str
    last: str
    depths: str = ""  # one digit a line, for Python


SNIPPETS = [
    Snippet("flow", "mermaid", "graph LR", "G[401 Unauthorized]"),
    Snippet("create", "python", "## Create a general-purpose API key", 'print(f"Prefix: {api_key.key_prefix}")'),
    Snippet("create_rest", "shell", 'curl -X POST "https://api.seeme.ai/api/v1/api-keys"', "}'"),
    Snippet("basic_scopes", "python", "# Read-only access to models", 'scopes=["models:*"]\n)'),
    Snippet("resource_specific", "python", "# Access only specific models", '"dataset-uuid-1"\n]\n)'),
    Snippet("organization_scoped", "python", "# Key limited to specific organization", 'organization_id="org-uuid"\n)'),
    Snippet("expiration", "python", "# Expires in 30 days", 'expires_at="2024-06-30T23:59:59Z"\n)'),
    Snippet("no_expiration", "python", "# Never expires", "# No expiration parameters\n)"),
    Snippet("use", "python", "from seeme import Client", "models = client.get_models()"),
    Snippet("use_rest", "shell", 'curl "https://api.seeme.ai/api/v1/models"', 'sm_live_xxxxxxxxxxxx"'),
    Snippet("use_javascript", "javascript", "const response = await fetch(", "});"),
    Snippet("list", "python", "# List all your API keys", 'print(f" Last used: {key.last_used_at}")', "00011212"),
    Snippet("disable", "python", "# Disable without deleting", "disabled=False\n)"),
    Snippet("delete", "python", "# Permanently delete key", "client.delete_api_key(api_key_id=key.id)"),
    Snippet("rotate", "python", "# Best practice: create new key", "client.delete_api_key(api_key_id=old_key.id)"),
    Snippet("env_file", "dotenv", "# .env file", "SEEME_API_KEY=sm_live_xxxxxxxxxxxx"),
    Snippet("env", "python", "import os", 'client = Client(apikey=os.environ["SEEME_API_KEY"])'),
    Snippet("secret_manager", "python", "# AWS Secrets Manager", "client = Client(apikey=secret['api_key'])"),
    Snippet("rate_limit_headers", "headers", "X-RateLimit-Limit: 300", "X-RateLimit-Reset: 1705312800"),
    Snippet("usage", "python", "# Get key usage statistics", 'print(f"By endpoint: {usage.by_endpoint}")'),
    Snippet("production", "python", "import os", "(e).__name__}\")\nraise", "0000010011233221222"),
]


def extract() -> typing.Dict[str, str]:
    """The text of each snippet by its name."""
    return {snippet.name: indented(snippet, PAGE[start:end]) for snippet, start, end in spans()}


def spans():
    """Each snippet with the place where it begins and ends; each is looked for after the one before."""
    at = 0
    for snippet in SNIPPETS:
        start = PAGE.index(snippet.first, at)
        at = PAGE.index(snippet.last, start) + len(snippet.last)
        yield snippet, start, at


def indented(snippet: Snippet, text: str) -> str:
    """`text` with the depth of its lines put back."""
    if not snippet.depths:
        return text
    lines = text.rstrip("\n").split("\n")
    if len(lines) != len(snippet.depths):
        raise ValueError(f"{snippet.name}: {len(lines)} lines, but the depth of {len(snippet.depths)} is known")
    return "\n".join("    " * int(depth) + line for depth, line in zip(snippet.depths, lines))


def code_outside() -> typing.List[str]:
    """Lines that look like code and are in no snippet."""
    rest, at = "", 0
    for _, start, end in spans():
        rest, at = rest + PAGE[at:start] + "\n", end
    rest += PAGE[at:]
    code = re.compile(r"client\s*[.=]|curl |^import |^from \w+ import|fetch\(|print\(|\w\(\w+=|^#|-->|^X-")
    return [line for line in rest.split("\n") if code.search(line)]
