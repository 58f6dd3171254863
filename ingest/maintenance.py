"""Looking after the offline store in the background, group by group, until it is stopped."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

from featurestore.errors import FeatureGroupNotFound, FeatureStoreError
from featurestore.model.feature_group import GroupStatus
from featurestore.store import FeatureStore
from ingest.background import Background, Retry

_log: Final = logging.getLogger(__name__)

PAUSE_SHARE: Final = 10
"""A round that took long is followed by a pause of so many times its length, so that it never keeps the machine busy."""


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """What the worker last did.

    Attributes:
        finished_at_s: seconds since 1970 of the last round, or None before the first.
        errors: per group the message of what went wrong in that round.
    """

    finished_at_s: float | None
    errors: dict[str, str]


class MaintenanceWorker(Background):
    """Runs `store.maintain` for every group every `maintenance_s` seconds, in a thread of its own.

    A failure is logged, kept and tried again in the next round; it never holds up the other groups.
    """

    def __init__(self, store: FeatureStore, *, maintenance_s: float) -> None:
        retry = Retry("maintenance can't begin", maintenance_s, PAUSE_SHARE * maintenance_s)
        super().__init__("maintenance", self._maintain, retry, pause_s=maintenance_s)
        self._store = store
        self._maintenance_s = maintenance_s
        self.status = MaintenanceStatus(None, {})

    def _maintain(self) -> float:
        started_s = time.monotonic()
        errors = self._round()
        self.status = MaintenanceStatus(time.time(), errors)
        return max(self._maintenance_s, PAUSE_SHARE * (time.monotonic() - started_s))

    def _round(self) -> dict[str, str]:
        errors: dict[str, str] = {}
        try:
            groups = self._store.feature_groups()
            # Not those being deleted: repairing their online records would work against it.
            names = [group.name for group in groups if group.offline is not None and group.status is GroupStatus.CREATED]
        except FeatureStoreError as error:
            _log.error("maintenance can't list the feature groups: %s", error)
            return {"": str(error)}
        for name in names:
            if self.is_stopping:
                break
            try:
                report = self._store.maintain(name)
            except FeatureGroupNotFound:
                continue  # deleted since it was listed
            except Exception as error:  # whatever it is, the other groups have their turn, and this one the next round
                errors[name] = str(error)
                expected = isinstance(error, FeatureStoreError)
                _log.error("maintenance of feature group %s failed: %s", name, error, exc_info=None if expected else error)
            else:
                if report.converged.repaired:
                    _log.warning(
                        "feature group %s: %d of %d records drawn at random were missing or stale online and are repaired; "
                        "run `featurestore audit %s`",
                        name,
                        report.converged.repaired,
                        report.converged.checked,
                        name,
                    )
                if report.changed:
                    _log.info("maintenance of feature group %s: %s", name, report)
        return errors
