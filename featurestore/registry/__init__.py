"""Feature groups and their metadata."""

from featurestore.registry.protocol import (
    FeatureMetadata,
    GroupPage,
    GroupQuery,
    GroupSort,
    Registry,
    StoreIdentity,
    WantedIdentity,
)

__all__ = ["FeatureMetadata", "GroupPage", "GroupQuery", "GroupSort", "Registry", "StoreIdentity", "WantedIdentity"]
