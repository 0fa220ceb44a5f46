"""The files of one machine: valid by the Compose specification, closed as far as they can be, and one with the others.

`docker compose` is not run: no Docker engine is at hand. What Prometheus and Grafana are given is tested beside this.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from softspec import __version__

DEPLOY = Path(__file__).parents[2] / "deploy"
SETTINGS = {"ENSEMBLE": "/srv/runs/my", "BASE": "/srv/models/base"}
"""What an operator sets; the rest has defaults."""


def interpolated(text: str) -> str:
    """What Compose makes of `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        assert name in SETTINGS or kind == ":-", f"{name} has no default: {rest}"
        return SETTINGS.get(name, rest)

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


def loaded(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(interpolated((DEPLOY / name).read_text(encoding="utf-8"))))


COMPOSE = loaded("compose.yaml")
SERVICES = COMPOSE["services"]
SERVER = SERVICES["server"]
FLAGS = dict(word[2:].split("=") for word in SERVER["command"] if word.startswith("--"))


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two files as Compose puts them together, where no lists meet."""
    both = {
        name: merged(under[name], over[name]) if isinstance(over[name], dict) else over[name]
        for name in under.keys() & over.keys()
    }
    return {**under, **over, **both}


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize(
    "files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=["cpu", "gpu"]
)
def test_files_are_what_the_specification_allows(files: list[str]) -> None:
    document = COMPOSE
    for file in files[1:]:
        document = merged(document, loaded(file))

    assert set(PyCompose.from_yaml(yaml.safe_dump(document)).service_names()) == {
        "server",
        "prometheus",
        "grafana",
    }


def test_specification_allows_not_everything() -> None:
    with pytest.raises(ValueError, match="read_onli"):
        PyCompose.from_yaml("services: {server: {image: softspec, read_onli: true}}")


@pytest.mark.parametrize("name", SERVICES)
def test_service_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "pid", "network_mode", "devices", "user"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert re.search(r":v?\d+\.\d+\.\d+(-cpu)?$", service["image"])


def test_no_secret_is_in_a_variable_or_a_flag() -> None:
    said = [
        *(word for service in SERVICES.values() for word in service.get("command", ())),
        *(
            f"{name}={value}"
            for each in SERVICES.values()
            for name, value in each.get("environment", {}).items()
        ),
    ]
    secret = [
        word
        for word in said
        if re.search(r"PASSWORD|TOKEN|SECRET|KEY", word.partition("=")[0], re.IGNORECASE)
    ]

    assert len(secret) == len(COMPOSE["secrets"])
    assert all(word.partition("=")[2].startswith("/run/secrets/") for word in secret)
    assert all(secret["file"].startswith("secrets/") for secret in COMPOSE["secrets"].values())
    assert (DEPLOY / "secrets" / ".gitignore").read_text(encoding="utf-8").splitlines()[1:] == [
        "*",
        "!.gitignore",
    ]


def test_server_is_this_version_and_reads_what_it_serves() -> None:
    places = {each["target"]: each for each in SERVER["volumes"] if isinstance(each, dict)}

    assert SERVER["image"] == f"softspec:{__version__}-cpu"
    assert loaded("compose.gpu.yaml")["services"]["server"]["image"] == f"softspec:{__version__}"
    assert SERVER["command"][0] in places
    assert FLAGS["base"] in places
    assert all(each["read_only"] and not each["bind"]["create_host_path"] for each in places.values())


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_image_is_built_from_a_file_of_this_folder(file: str) -> None:
    build = merged(SERVER["build"], loaded(file)["services"]["server"]["build"])

    assert (DEPLOY / build["context"]).resolve() == DEPLOY.parent
    assert (DEPLOY.parent / build["dockerfile"]).is_file()


def test_server_is_left_the_time_to_finish() -> None:
    """And fifteen seconds to say goodbye, see deploy/README.md."""
    assert seconds(SERVER["stop_grace_period"]) >= int(FLAGS["drain-timeout"]) + 15


def test_all_ask_the_port_on_which_the_server_answers() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = prometheus["scrape_configs"]

    assert job["job_name"] == "softspec"
    assert job["static_configs"] == [{"targets": [f"server:{FLAGS['ops-port']}"]}]
    assert SERVER["environment"]["HEALTH_URL"] == f"http://127.0.0.1:{FLAGS['ops-port']}/health"
    assert SERVER["ports"][0].endswith(f":{FLAGS['port']}")


def test_mounted_folders_exist() -> None:
    sources = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if isinstance(volume, str)
    }

    assert {source for source in sources if not source.startswith("./")} == set(COMPOSE["volumes"])
    assert all((DEPLOY / source).is_dir() for source in sources if source.startswith("./"))


def test_alerts_may_look_back_as_far_as_they_do() -> None:
    (kept,) = [word for word in SERVICES["prometheus"]["command"] if "retention.time" in word]

    assert int(kept.partition("=")[2].removesuffix("d")) > 8


def test_grafana_is_given_its_source_and_its_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "softspec.yaml").read_text())["providers"]
    grafana = SERVICES["grafana"]
    targets = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana["volumes"]}

    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    folder = DEPLOY / targets[provider["options"]["path"]]
    assert (folder / home.relative_to(provider["options"]["path"])).is_file()
    assert targets["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
