"""What lies beside the library, the runbook, containers, Kubernetes' objects: what each names is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from textwrap import dedent

import pytest

from panels_support import PANELS, promtool
from poolwatch.catalog import BY_FIELD
from poolwatch.demo import __main__ as demo

pytestmark = pytest.mark.tooling

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = ROOT / "dashboards"
PARTS = ["Meaning", "Where to look", "What to do now", "What to change for good", "False alarms"]


def text_of(path: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


RUNBOOK = text_of("RUNBOOK.md")
RULES = text_of("dashboards/alerts.yml") + text_of("dashboards/server.yml")
ALERTS = sorted(set(re.findall(r"- alert: (\w+)", RULES)))
COMPOSE = text_of("compose.yaml")
# By its heading.
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", RUNBOOK, re.MULTILINE))


def anchor(heading: str) -> str:
    """Return GitHub's anchor of *heading*."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


def prose(markdown: str) -> str:
    """Return *markdown* without code and bold type."""
    return re.sub(r"```.*?```|`[^`]+`|\*\*.+?\*\*", "", markdown, flags=re.DOTALL)


def panels(markdown: str) -> set[str]:
    """Return the titles of panels that *markdown* names: what is in italics."""
    return {" ".join(title.split()) for title in re.findall(r"\*([^*]+)\*", prose(markdown))}


def test_every_alert_has_a_section() -> None:
    """Protects who is woken: the runbook has a section for each alert, in no other order than the rules."""
    assert ALERTS
    assert [heading for heading in SECTIONS if heading.startswith("SQLAlchemyPool")] == list(
        dict.fromkeys(re.findall(r"- alert: (\w+)", RULES))
    )


@pytest.mark.parametrize("alert", ALERTS)
def test_a_section_is_whole(alert: str) -> None:
    """Protects who is woken: meaning, where to look, what to do, what to change and what may be wrong, all said."""
    before, *parts = re.split(r"^\*\*([\w ]+)\.\*\*", SECTIONS[alert], flags=re.MULTILINE)
    assert before.strip() == ""
    assert parts[::2] == PARTS
    assert all(len(said.split()) > 2 for said in parts[1::2])
    assert panels(parts[3]) or "`poolwatch`" in parts[3]


def test_links_into_the_runbook_lead_somewhere() -> None:
    """Protects the link in an alert, and those from section to section: an anchor is a heading's."""
    links = re.findall(r'runbook_url: "RUNBOOK\.md#([^"]+)"', RULES)
    assert set(links) == {alert.lower() for alert in ALERTS}
    assert {*links, *re.findall(r"\]\(#([^)]+)\)", RUNBOOK)} <= {anchor(heading) for heading in SECTIONS}


def test_panels_of_the_runbook_are_on_the_dashboard() -> None:
    """Protects the reader from looking for a panel that has another title by now."""
    titles = {panel["title"] for panel in PANELS}
    assert panels(RUNBOOK)
    assert panels(RUNBOOK) - titles == set()


def test_every_check_is_explained() -> None:
    """Protects who reads the label `check`: the table has each of the catalogue's, in its order, and no other."""
    (label,) = BY_FIELD["config_problem"].labels
    assert re.findall(r"^\| `(\w+)` \|", SECTIONS["SQLAlchemyPoolConfigProblem"], re.MULTILINE) == list(label.values)


def test_every_alert_is_in_the_table_of_circumstances() -> None:
    """Protects who asks what an alert does in a roll-out: no alert is left out, none is there that is gone."""
    rows = re.findall(r"^\| (\w+) (?:\|[^|]+){5}\|$", SECTIONS["Restarts, roll-outs, little traffic"], re.MULTILINE)
    assert rows[0] == "alert"
    assert sorted(f"SQLAlchemyPool{row}" for row in rows[1:]) == ALERTS


def test_kubernetes_gets_the_same_rules() -> None:
    """Protects clusters from rules of yesterday: the object holds both files' groups, to the letter."""
    _, _, spec = text_of("dashboards/kubernetes/prometheusrule.yaml").partition("\nspec:\n")
    groups = [text_of(f"dashboards/{name}.yml").partition("groups:\n")[2] for name in ("alerts", "server")]
    assert dedent(spec) == "groups:\n" + "".join(groups)


@pytest.mark.parametrize(
    "path",
    [
        "compose.yaml",
        "dashboards/kubernetes/podmonitor.yaml",
        "dashboards/kubernetes/prometheusrule.yaml",
        "dashboards/provisioning/grafana/dashboards/poolwatch.yml",
        "dashboards/provisioning/grafana/datasources/prometheus.yml",
    ],
)
def test_it_is_yaml(path: str) -> None:
    """Protects a file from a slip of its indentation: promtool parses it all, and complains of its first level."""
    complaint = promtool("check", "config", ROOT / path).stderr
    keys = re.findall(r"line \d+: field (\w+) not found in type config\.plain", complaint)
    assert keys == re.findall(r"^(\w+):", text_of(path), re.MULTILINE), complaint
    assert len(complaint.strip().splitlines()) == len(keys) + 1


def test_pods_keep_their_names(tmp_path: Path) -> None:
    """Protects clusters from an object that the operator refuses to turn into Prometheus's configuration."""
    _, _, relabelings = text_of("dashboards/kubernetes/podmonitor.yaml").partition("relabelings:\n")
    relabelings = relabelings.replace("sourceLabels", "source_labels").replace("targetLabel", "target_label")
    path = tmp_path / "prometheus.yml"
    path.write_text("scrape_configs:\n  - job_name: pods\n    relabel_configs:\n" + relabelings, encoding="utf-8")
    answer = promtool("check", "config", path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.findall("target_label: (.*)", relabelings) == ["job", "namespace", "pod", "instance"]


def test_prometheus_accepts_its_configuration() -> None:
    """Protects `docker compose up`: Prometheus does not start with what it cannot read; it has all files of rules."""
    answer = promtool("check", "config", DASHBOARDS / "provisioning" / "prometheus.yml")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert [DASHBOARDS / name for name in ("alerts.yml", "server.yml", "recording.yml")] == [
        Path(path).resolve() for path in re.findall(r"Checking (\S+)", answer.stdout)[1:]
    ]


def test_containers_find_what_they_mount() -> None:
    """Protects `docker compose up`: a path that does not exist would be made, as an empty directory of root's."""
    mounts = dict(re.findall(r'^ +(?:volumes: \["|- )(\./[^:]*):(/[^:"]+):ro', COMPOSE, re.MULTILINE))
    assert COMPOSE.count("./") == len(mounts)
    assert [source for source in mounts if not (ROOT / source).exists()] == []
    inside = {target: source for source, target in mounts.items()}
    # What the options name is mounted there.
    assert inside["/etc/poolwatch"] == "./dashboards"
    assert "--config.file=/etc/poolwatch/provisioning/prometheus.yml" in COMPOSE
    home = re.findall(r"HOME_DASHBOARD_PATH: (\S+)", COMPOSE)
    assert [inside[path] for path in home] == ["./dashboards/sqlalchemy-pool.json"]
    provider = text_of("dashboards/provisioning/grafana/dashboards/poolwatch.yml")
    assert re.findall(r"path: (\S+)", provider) == [str(Path(path).parent) for path in home]


def test_containers_find_one_another() -> None:
    """Protects `docker compose up`: hosts are services, at ports where they listen, and the demo takes its options."""
    services = set(re.findall(r"^  (\w+):$", COMPOSE, re.MULTILINE))
    (command,) = re.findall(r"python -m poolwatch\.demo ((?:--.*\n? *)+)", COMPOSE)
    given = demo._parser().parse_args(shlex.split(command))
    hosts = {
        re.findall(r"@(\w+):(\d+)/", given.database)[0],
        *re.findall(r'targets: \["(\w+):(\d+)"\]', text_of("dashboards/provisioning/prometheus.yml")),
        *re.findall(r"http://(\w+):(\d+)", text_of("dashboards/provisioning/grafana/datasources/prometheus.yml")),
    }
    assert hosts == {("mariadb", "3306"), ("app", str(given.listen[1])), ("prometheus", "9090")}
    assert {host for host, _ in hosts} | {"grafana"} == services
    assert set(re.findall(r"^ {6}(\w+):\n +condition: service_healthy$", COMPOSE, re.MULTILINE)) < services
    assert COMPOSE.count("healthcheck:\n") == len(services)
    # The quiet spells of the demo's users are made for this limit.
    assert f'["--wait-timeout={demo.WAIT_TIMEOUT}"]' in COMPOSE


def test_containers_are_pinned_and_private() -> None:
    """Protects who tries it: the versions are those that were meant, and nobody on the network gets in."""
    images = re.findall(r"image: (\S+)", COMPOSE)
    assert [image for image in images if not re.search(r":v?\d+\.\d+[\w.-]*$", image)] == []
    ports = re.findall(r"ports: \[(.*)\]", COMPOSE)
    assert ports
    assert [port for port in ports if not port.startswith('"127.0.0.1:')] == []


def test_scrape_intervals_agree() -> None:
    """Protects graphs from gaps: Grafana's data source has to know how often Prometheus scrapes."""
    scraped = re.findall(r"scrape_interval: (\S+)", text_of("dashboards/provisioning/prometheus.yml"))
    known = re.findall(r"timeInterval: (\S+)", text_of("dashboards/provisioning/grafana/datasources/prometheus.yml"))
    assert scraped == known
    assert len(known) == 1


def test_pictures_of_the_readme_are_there_and_small() -> None:
    """Protects the README's first screen, and those who clone it over a slow line."""
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of("README.md"))
    assert {Path(path) for path in shown} == {
        path.relative_to(ROOT) for path in (ROOT / "dashboards" / "pictures").iterdir()
    }
    assert all((ROOT / path).stat().st_size < 300_000 for path in shown)
