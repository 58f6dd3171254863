"""A service on loopback answers to loopback names only: a web page can't reach it through a host name of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import Http
from tests.service import Service


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
@pytest.mark.parametrize("path", ["/health", "/FeatureGroup/nobody?RecordIdentifierValueAsString=1"])
def test_loopback_names(http_client: Http, host: str, path: str) -> None:
    for name in (host, f"{host}:{http_client.port}"):
        assert http_client.request("GET", path, headers={"Host": name}).status in (200, 404)


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:8080", "127.0.0.1.attacker.example", "10.0.0.1", ""])
@pytest.mark.parametrize("path", ["/health", "/v1/groups", "/FeatureGroup/nobody?RecordIdentifierValueAsString=1"])
def test_other_names(http_client: Http, host: str, path: str) -> None:
    reply = http_client.request("GET", path, headers={"Host": host})
    assert (reply.status, reply.code) == (403, "AccessForbidden")
    assert "expected one of 127.0.0.1, [::1], localhost" in reply.message


def test_services_with_keys_answer_to_any_name(tmp_path: Path) -> None:
    keys = {"admin_access_key_id": "admin", "admin_secret_access_key": "a long enough secret"}
    with Service(tmp_path / "home", tmp_path / "log", **keys) as service:
        reply = Http(service.port).request("GET", "/health", headers={"Host": "store.example"})
    assert reply.status == 200


def test_the_reference_page_loads_nothing_from_elsewhere(http_client: Http) -> None:
    page = http_client.request("GET", "/docs", headers={"Host": f"127.0.0.1:{http_client.port}"})
    assert page.status == 200
    text = page.body.decode().replace(f"http://127.0.0.1:{http_client.port}", "")
    assert "://" not in text
    for path in ("/docs/swagger-ui.js", "/docs/swagger-ui.css", "/docs/favicon.png", "/openapi.json"):
        assert http_client.request("GET", path).status == 200
