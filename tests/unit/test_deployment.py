"""The files that deploy the service, checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

import typer
import yaml

from featurestore.cli import app
from featurestore.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_names_what_it_uses() -> None:
    volumes = {entry.partition(":")[0] for service in COMPOSE["services"].values() for entry in service.get("volumes", [])}
    assert volumes == COMPOSE["volumes"].keys()
    for service in COMPOSE["services"].values():
        assert service.get("depends_on", {}).keys() <= COMPOSE["services"].keys()
        for name, needed in service.get("depends_on", {}).items():
            if needed["condition"] == "service_healthy":
                assert "test" in COMPOSE["services"][name]["healthcheck"]
            else:
                assert needed["condition"] == "service_completed_successfully"
                assert COMPOSE["services"][name]["restart"] == "no"


def test_compose_sets_only_known_settings() -> None:
    ours = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
    assert len(ours) >= 5
    for service in ours.values():
        settings = {name: value for name, value in service["environment"].items() if name.startswith(PREFIX)}
        assert Settings.load(settings).online_url == "redis://redis:6379/0"


def test_compose_serves_signed_requests_only() -> None:
    for service in COMPOSE["services"].values():
        if "0.0.0.0" in service.get("command", []):  # noqa: S104
            settings = Settings.load({name: value for name, value in service["environment"].items() if name.startswith(PREFIX)})
            assert settings.admin_access_key_id


def test_compose_runs_commands_that_there_are() -> None:
    command = typer.main.get_command(app)
    seen = set()
    for service in COMPOSE["services"].values():
        if "build" not in service:
            continue
        found = command
        names = [word for word in service["command"] if not word.startswith("-") and word.isalpha()]
        for name in names:
            found = found.commands[name]
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in service["command"] if word.startswith("--")} <= options
        seen.add(" ".join(names))
    assert seen == {"serve", "worker relay", "worker offline", "worker maintenance", "worker stream"}


def test_ports_are_published_on_loopback_only() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_images_are_pinned() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert images
    assert all(re.search(r":(RELEASE\.)?[0-9][\w.-]*$", image) for image in images)


def test_the_image_runs_without_rights_and_copies_what_exists() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER featurestore$", text, re.MULTILINE)
    for line in re.findall(r"^COPY (?!--from)(.*)", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
