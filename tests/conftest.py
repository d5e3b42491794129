"""The gateway that the tests share. A module that deletes what others need starts one of its own."""

import pytest
from harness import REPOSITORY, Gateway


def end(gateway: Gateway) -> None:
    """Stops a gateway as an operator would, and looks at what it leaves behind."""
    assert gateway.stop() == 0, gateway.process.text()[-4000:]
    left = gateway.process.output.read_bytes()
    for file in gateway.store.parent.glob(gateway.store.name + "*"):
        left += file.read_bytes()
    leaked = [secret[:12] for secret in gateway.secrets if secret.encode() in left]
    assert not leaked, f"secrets of these keys are in the log or in the store: {leaked}"


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    running = Gateway(tmp_path_factory.mktemp("gateway"))
    yield running
    end(running)


@pytest.fixture(scope="module")
def own_gateway(tmp_path_factory):
    running = Gateway(tmp_path_factory.mktemp("own"))
    yield running
    end(running)


@pytest.fixture(scope="session")
def anything(tmp_path_factory):
    """A gateway that lets keys with the scope anything:use through to every path of the sample backend."""
    config = REPOSITORY / "tests" / "data" / "anything.yaml"
    running = Gateway(tmp_path_factory.mktemp("anything"), config=config)
    yield running
    end(running)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """The client reads a .env from the current folder and the SEEME_ environment: start from neither."""
    monkeypatch.chdir(tmp_path)
    for name in ("SEEME_API_KEY", "SEEME_USERNAME", "SEEME_BACKEND"):
        monkeypatch.delenv(name, raising=False)
