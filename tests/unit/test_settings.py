from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from featurestore.errors import SettingsInvalid
from featurestore.settings import PREFIX, Settings

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_defaults_need_nothing() -> None:
    settings = Settings.load({})
    assert settings.host == "127.0.0.1"
    assert settings.online_location == f"sqlite:///{Path('.featurestore').absolute()}/online.db"


def test_the_environment_and_overrides() -> None:
    settings = Settings.load({"FEATURESTORE_PORT": "9000", "PATH": "/bin", "FEATURESTORE_HOME": "/a"}, home="/b", host=None)
    assert (settings.port, settings.home, settings.host) == (9000, Path("/b"), "127.0.0.1")


def test_an_unknown_name_refuses_and_suggests() -> None:
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_FLSH_S: .*did you mean FEATURESTORE_FLUSH_S"):
        Settings.load({"FEATURESTORE_FLSH_S": "1"})
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_ZZZZZZ: expected one of"):
        Settings.load({"FEATURESTORE_ZZZZZZ": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("WORKERS", "0"),
        ("WORKERS", "65"),
        ("WORKERS", "1.5"),
        ("FLUSH_S", "0"),
        ("SHARDS", "0"),
        ("ACCOUNT_ID", "12"),
        ("ONLINE_URL", "memcached://localhost"),
        ("OFFLINE_URL", "/just/a/path"),
        ("REGISTRY_URL", "mysql://x"),
        ("ACCESS_LOG", "maybe"),
        ("ADMIN_ACCESS_KEY_ID", "a/b"),
        ("ADMIN_SECRET_ACCESS_KEY", "short"),
    ],
)
def test_a_wrong_value_names_its_setting(name: str, value: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{PREFIX}{name}"):
        Settings.load({f"{PREFIX}{name}": value})


def test_a_wrong_url_is_not_repeated_since_it_may_hold_a_password() -> None:
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_ONLINE_URL: expected .* starting with sqlite: or redis:") as caught:
        Settings.load({"FEATURESTORE_ONLINE_URL": "resid://:hush@localhost"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("ADMIN_ACCESS_KEY_ID", "ADMIN_SECRET_ACCESS_KEY"),
        ("ADMIN_SECRET_ACCESS_KEY", "ADMIN_ACCESS_KEY_ID"),
        ("TLS_CERT_FILE", "TLS_KEY_FILE"),
        ("TLS_KEY_FILE", "TLS_CERT_FILE"),
    ],
)
def test_settings_that_belong_together(given: str, missing: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"^{PREFIX}{missing}: expected a value, as {PREFIX}{given} has one$"):
        Settings.load({f"{PREFIX}{given}": "something-long-enough"})


@pytest.mark.parametrize("secret", ["hush", "hush" * 100])
def test_a_secret_key_is_never_shown(secret: str) -> None:
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_ADMIN_SECRET_ACCESS_KEY") as caught:
        Settings.load({"FEATURESTORE_ADMIN_ACCESS_KEY_ID": "admin", "FEATURESTORE_ADMIN_SECRET_ACCESS_KEY": secret})
    assert "hush" not in str(caught.value)
    good = {"FEATURESTORE_ADMIN_ACCESS_KEY_ID": "admin", "FEATURESTORE_ADMIN_SECRET_ACCESS_KEY": "hush" * 5}
    settings = Settings.load(good)
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        Settings.load({}).port = 1


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    text = REFERENCE.read_text()
    assert f"`{PREFIX}{name.upper()}`" in text
    description = Settings.model_fields[name].description
    assert description
    assert description in text.replace("\n", " ")


def test_the_password_of_kafka_is_never_shown() -> None:
    settings = Settings.load(
        {
            "FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS": "broker:9093",
            "FEATURESTORE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "FEATURESTORE_KAFKA_SASL_USER": "store",
            "FEATURESTORE_KAFKA_SASL_PASSWORD": "secret-word",
        }
    )
    assert settings.kafka_sasl_password.get_secret_value() == "secret-word"
    assert "secret-word" not in repr(settings)
    assert "secret-word" not in settings.model_dump_json()
