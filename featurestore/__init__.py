"""An open, self-hosted feature store with the semantics and wire protocol of Amazon SageMaker Feature Store."""

from __future__ import annotations

from pathlib import Path

from featurestore.access.sigv4 import Credentials
from featurestore.client import Client
from featurestore.settings import Settings
from featurestore.store import FeatureStore

__all__ = ["Client", "Credentials", "FeatureStore", "Settings", "connect", "open"]


def open(home: str | Path | None = None) -> FeatureStore:  # noqa: A001 - the verb users expect
    """Open the feature store in a folder (created when missing); other settings come from `FEATURESTORE_*`.

    Raises:
        SettingsInvalid, StoreUnavailable
    """
    return FeatureStore(Settings.load(home=home))


def connect(url: str, credentials: Credentials | None = None) -> Client:
    """A client of the service at `url`. Nothing is sent before the first call.

    Args:
        credentials: to sign requests with; by default those of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN,
            if they are there.
    """
    return Client(url, credentials=credentials)
