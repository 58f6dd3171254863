"""The newest record per identifier, decided by event time."""

from featurestore.online.protocol import (
    APPLY_CHANGES_MAX,
    STATES,
    Erased,
    OnlineSnapshot,
    OnlineStore,
    RecordKey,
    RecordState,
    StoredRecord,
    Tally,
)

__all__ = [
    "APPLY_CHANGES_MAX",
    "STATES",
    "Erased",
    "OnlineSnapshot",
    "OnlineStore",
    "RecordKey",
    "RecordState",
    "StoredRecord",
    "Tally",
]
