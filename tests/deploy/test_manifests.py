"""deploy/: the manifests are what Kubernetes knows, fit each other, and carry a gateway.yaml that the gateway takes."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from harness import REPOSITORY, binary

FOLDER = REPOSITORY / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
KUBERNETES = "1.37"
# What the gateway allows itself after `drain`, to write the last usage and say goodbye to the store.
GOODBYE = 5


def documents() -> list[dict]:
    return [document for file in FILES for document in yaml.safe_load_all(file.read_text())]


def the(kind: str) -> dict:
    (only,) = [document for document in documents() if document["kind"] == kind]
    return only


@pytest.fixture(scope="module")
def pod() -> dict:
    return the("Deployment")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod) -> dict:
    (only,) = pod["containers"]
    return only


def validate(*files: pathlib.Path) -> list[str]:
    """Everything that is not a plain pass. A kind or version without a schema is only warned of, with exit code 0."""
    tool = pathlib.Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run([tool, "--strict", "-k", KUBERNETES, *files], capture_output=True, text=True, timeout=60)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    passed = [line for line in lines if re.fullmatch(r"INFO\s+\S+ passed for resource .*", line)]
    return [line for line in lines if line not in passed] + ["nothing passed"] * (len(passed) < len(files))


def test_every_manifest_is_what_kubernetes_knows():
    assert FILES
    assert validate(*FILES) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("containerPort: 8080", "containerPrt: 8080"), ("replicas: 1", "replicas: one"), ("apps/v1", "apps/v9")],
)
def test_a_mistake_in_a_manifest_would_be_found(tmp_path, right, wrong):
    text = (FOLDER / "deployment.yaml").read_text()
    assert right in text
    (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong))
    assert validate(tmp_path / "wrong.yaml") != []


def embedded(folder: pathlib.Path) -> pathlib.Path:
    (name, text), *others = the("ConfigMap")["data"].items()
    assert (name, others) == ("gateway.yaml", [])
    (folder / name).write_text(text)
    return folder / name


def check(file: pathlib.Path, container: dict) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEEME_GATEWAY_")}
    environment |= {entry["name"]: entry["value"] for entry in container["env"]}
    command = [binary(), "check", "-c", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_gateway_takes_the_configuration_that_is_mounted(container, tmp_path):
    done = check(embedded(tmp_path), container)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mistake_in_the_configuration_would_be_found(container, tmp_path):
    file = embedded(tmp_path)
    file.write_text(file.read_text().replace("access: public", "acces: public"))
    assert check(file, container).returncode == 78


def test_it_takes_the_shipped_configuration_in_its_place(container, tmp_path):
    shutil.copy(REPOSITORY / "gateway.yaml", tmp_path)
    done = check(tmp_path / "gateway.yaml", container)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_where_the_gateway_looks_for_it(pod, container):
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == sources.keys()
    assert sources["config"]["configMap"]["name"] == the("ConfigMap")["metadata"]["name"]
    assert sources["data"]["persistentVolumeClaim"]["claimName"] == the("PersistentVolumeClaim")["metadata"]["name"]
    assert variables["SEEME_GATEWAY_CONFIG"] == f"{mounts['config']}/gateway.yaml"
    assert variables["SEEME_GATEWAY_STORE"].startswith(f"sqlite:{mounts['data']}/")


def test_ports_and_probes_name_what_the_gateway_listens_on(container):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["SEEME_GATEWAY_PUBLIC"] == f"0.0.0.0:{ports['http']}"
    assert variables["SEEME_GATEWAY_ADMIN"] == f"0.0.0.0:{ports['admin']}"
    for service in the("Service")["spec"]["ports"]:
        assert service["targetPort"] == "http", "the admin port is for operators"
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    annotations = the("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["admin"])
    assert annotations["prometheus.io/path"] == "/metrics"


def test_the_service_and_the_deployment_select_the_pods():
    labels = the("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (the("Deployment")["spec"]["selector"]["matchLabels"], the("Service")["spec"]["selector"]):
        assert selector.items() <= labels.items()


def test_one_replica_at_a_time_has_the_embedded_store():
    deployment = the("Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


def test_it_is_not_killed_while_it_drains(pod, tmp_path):
    drain = yaml.safe_load(embedded(tmp_path).read_text())["drain"]
    seconds = {name: int(re.fullmatch(r"(\d+)s", value)[1]) for name, value in drain.items()}
    assert pod["terminationGracePeriodSeconds"] > seconds["delay"] + seconds["timeout"] + GOODBYE


def test_it_may_do_no_more_than_it_needs(pod, container):
    user = 65532
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {user}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "deploy" / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_image_is_this_version_without_root_and_without_anything_else(container):
    version = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["package"]["version"]
    assert container["image"].endswith(f":{version}")
    image = dict(instructions())
    assert (image["FROM"], image["USER"]) == ("scratch", "65532:65532")
    (path,) = re.findall(r'"([^"]+)"', image["ENTRYPOINT"])
    copied = [line.split()[-1] for instruction, line in instructions() if instruction == "COPY"]
    assert path in copied
    # The variables of the image and of the Deployment say the same.
    variables = dict(re.findall(r"(SEEME_\w+)=(\S+)", image["ENV"]))
    assert variables.items() <= {entry["name"]: entry["value"] for entry in container["env"]}.items()
