"""grafana/overview.json asks for what the gateway has, and Grafana's own model of a dashboard knows every key of it.

Compared is with the scrape of a gateway that has seen all it can tell apart: a success, a refusal, a failed upstream, a
429. No Grafana imports the file here: none is to be had as a package.
"""

import json
import re

import pytest
import requests
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from harness import REPOSITORY, bearer, eventually

FILE = REPOSITORY / "grafana" / "overview.json"
# Prometheus gives these to every sample.
SCRAPER_LABELS = {"instance", "job"}

NAME = r"gateway_[a-z0-9_]+"
SELECTOR = re.compile(rf"({NAME})\s*(?:{{([^}}]*)}})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
SAMPLE = re.compile(rf"^({NAME})(?:{{(.*)}})? \S+$", re.MULTILINE)


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def scrape(anything) -> str:
    """What the gateway exports once everything that a metric tells apart has happened."""
    known, limited = bearer(anything.key("anything:use")), anything.account("dashboard-limited", plan="free")
    assert requests.get(f"{anything.url}/echo", headers=known, timeout=20).status_code == 200
    assert requests.get(f"{anything.url}/echo", timeout=20).status_code == 401
    assert requests.get(f"{anything.url}/echo?close=head", headers=known, timeout=20).status_code == 502
    over = bearer(anything.key("anything:use", account=limited))
    statuses = {requests.get(f"{anything.url}/echo", headers=over, timeout=20).status_code for _ in range(130)}
    assert 429 in statuses, statuses  # 60 a minute, and a minute may end meanwhile
    # Counted when a response has ended, which is after the client has seen it.
    assert eventually(lambda: 'class="429"' in anything.scrape() and 'class="5xx"' in anything.scrape())
    return anything.scrape()


def expressions(dashboard: dict) -> list[tuple[str, str]]:
    """Every query of the dashboard, with the place it stands in."""
    panels = [nested for panel in dashboard["panels"] for nested in (panel, *panel.get("panels", []))]
    found = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
    variables = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    return found + [(f"${variable['name']}", variable["query"]["query"]) for variable in variables]


def exported(scrape: str) -> dict[str, dict[str, set[str]]]:
    """Label values by label, by name of the sample."""
    samples = {}
    for name, labels in SAMPLE.findall(scrape):
        known = samples.setdefault(name, {})
        for label, value in re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', labels):
            known.setdefault(label, set()).add(value)
    return samples


def mistakes(dashboard: dict, scrape: str) -> list[str]:
    """Everything a query asks for that the gateway does not have."""
    samples, found = exported(scrape), []
    kinds = dict(re.findall(rf"^# TYPE ({NAME}) (\w+)$", scrape, re.MULTILINE))
    for place, expression in expressions(dashboard):
        labels = set(SCRAPER_LABELS)
        for name, matchers in SELECTOR.findall(expression):
            if name not in samples:
                found.append(f"{place}: there is no metric {name}")
                continue
            labels |= samples[name].keys()
            for label, operator, value in MATCHER.findall(matchers):
                if label in SCRAPER_LABELS:
                    continue
                missing = {value} if operator == "=" else set(value.split("|"))
                missing -= samples[name].get(label, set())
                found += [f"{place}: {name} has no {label}={value!r}" for value in sorted(missing)]
        for name in re.findall(rf"(?:rate|increase)\(({NAME})", expression):
            if kinds.get(re.sub("_bucket$", "", name)) not in ("counter", "histogram"):
                found.append(f"{place}: {name} does not only grow")
        for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
            found += [f"{place}: nothing is labelled {label}" for label in re.findall(r"\w+", grouping) if label not in labels]
    return found


def test_every_metric_and_label_it_asks_for_exists(dashboard, scrape):
    assert len(expressions(dashboard)) > 20
    assert mistakes(dashboard, scrape) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("gateway_requests_total", "gateway_request_total"),
        ("gateway_request_duration_seconds_bucket", "gateway_request_duration_seconds_buckets"),
        ("by (class)", "by (klass)"),
        ('class="5xx"', 'class="5XX"'),
        ("min(gateway_replicas{", "min(rate(gateway_replicas{"),
        ("label_values(gateway_build_info", "label_values(gateway_build"),
    ],
)
def test_a_wrong_name_would_be_found(dashboard, scrape, right, wrong):
    quoted = json.dumps(right)[1:-1]
    text = json.dumps(dashboard)
    assert quoted in text
    assert mistakes(json.loads(text.replace(quoted, json.dumps(wrong)[1:-1])), scrape) != []


def unknown_keys(sent, returned, place="") -> list[str]:
    """What a round trip through Grafana's model loses."""
    if isinstance(sent, dict) and isinstance(returned, dict):
        lost = [f"{place}.{key}" for key in sent if key not in returned and sent[key] not in (None, [], {})]
        return lost + [
            found for key in sent if key in returned for found in unknown_keys(sent[key], returned[key], f"{place}.{key}")
        ]
    if isinstance(sent, list) and isinstance(returned, list):
        pairs = enumerate(zip(sent, returned, strict=True))
        return [found for i, pair in pairs for found in unknown_keys(*pair, f"{place}[{i}]")]
    return [] if sent == returned else [f"{place}: {sent!r} became {returned!r}"]


def round_trip(dashboard: dict) -> dict:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafana_knows_every_key_of_it(dashboard):
    assert unknown_keys(dashboard, round_trip(dashboard)) == []
    dashboard = json.loads(FILE.read_text())  # and would tell of one it does not know
    dashboard["panels"][0]["targets"][0]["exprr"] = "1"
    assert unknown_keys(dashboard, round_trip(dashboard)) == [".panels[0].targets[0].exprr"]


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard):
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]


def test_every_query_names_the_data_source_variable(dashboard):
    sources = {json.dumps(panel["datasource"]) for panel in dashboard["panels"] if panel["type"] != "row"}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
