"""Ordered shards of changes, between the online store and the offline writer."""

from featurestore.changelog.protocol import ChangeSource

__all__ = ["ChangeSource"]
