"""An open, self-hosted feature store with the semantics and wire protocol of Amazon SageMaker Feature Store."""

from __future__ import annotations

from pathlib import Path

from featurestore.client import Client
from featurestore.settings import Settings
from featurestore.store import FeatureStore

__all__ = ["Client", "FeatureStore", "Settings", "connect", "open"]


def open(home: str | Path | None = None) -> FeatureStore:  # noqa: A001 - the verb users expect
    """Open the feature store in a folder (created when missing); other settings come from `FEATURESTORE_*`.

    Raises:
        SettingsInvalid, StoreUnavailable
    """
    return FeatureStore(Settings.load(home=home))


def connect(url: str) -> Client:
    """A client of the service at `url`. Nothing is sent before the first call."""
    return Client(url)
