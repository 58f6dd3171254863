"""The newest record per identifier, decided by event time."""

from featurestore.online.protocol import APPLY_CHANGES_MAX, OnlineStore, RecordKey, StoredRecord

__all__ = ["APPLY_CHANGES_MAX", "OnlineStore", "RecordKey", "StoredRecord"]
