"""What a question sees of one group's table: files of one manifest version, and which of their rows count.

What the manifest knows to be in none of the files, as deletes and expiries mostly are, costs a question nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.engine import instant
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import schema
from featurestore.offline.manifest import FileEntry, Version
from featurestore.offline.relation import files_relation, numbered_relation


@dataclass(frozen=True, slots=True)
class Sight:
    """The rows of one group that a question may see.

    Attributes:
        paths: exact files of one manifest version; they may hold more rows than are seen.
        written_by_us: only rows that were written to the table by then, microseconds since 1970: the table as it was.
        retained_from_us: only rows from this event time on; None where no file has an earlier one.
        deletes: whether any of the files has the marker of a delete; `hard_deletes`: of a hard one.
        expiries: whether a row of any of the files expires.
        api_times_repeat: whether changes of one record may share an API time. Of two such the later written one is the later.
    """

    group: FeatureGroup
    paths: Sequence[str]
    written_by_us: int | None = None
    retained_from_us: int | None = None
    deletes: bool = False
    hard_deletes: bool = False
    expiries: bool = False
    api_times_repeat: bool = False

    def rows(self, *conditions: str) -> str:
        """The rows in sight that meet all conditions, as what stands behind FROM."""
        return self._where(files_relation(self.group, self.paths), conditions)

    def numbered_rows(self, *conditions: str) -> str:
        """As `rows`, of one file at least: the record identifier, the system columns, and where a row is (`values.PLACE_SQL`)."""
        return self._where(numbered_relation(self.paths), conditions)

    def _where(self, relation: str, conditions: Sequence[str]) -> str:
        every = list(conditions)
        if self.written_by_us is not None:
            every.append(f"{schema.WRITE_TIME} <= {instant(self.written_by_us)}")
        if self.retained_from_us is not None:
            every.append(f"{schema.EVENT_TIME} >= {instant(self.retained_from_us)}")
        return f"{relation} WHERE {' AND '.join(every)}" if every else relation

    @property
    def arrival(self) -> str:
        """The SQL of the time that orders the arrivals of changes: the API time, told apart further where it repeats."""
        if self.api_times_repeat:
            return f"struct_pack(a := {schema.API_TIME}, b := {schema.WRITE_TIME})"
        return schema.API_TIME


def files_in_sight(version: Version, as_of_us: int | None) -> list[FileEntry]:
    """The files of a table version that hold rows written by `as_of_us` and not older than what is retained."""
    floor_us = version.retained_from_us
    return [
        entry
        for entry in version.files
        if (as_of_us is None or entry.write_time_us_min <= as_of_us) and (floor_us is None or entry.event_time_us_max >= floor_us)
    ]


def sight_of(
    group: FeatureGroup, version: Version, entries: Sequence[FileEntry], paths: Sequence[str], as_of_us: int | None
) -> Sight:
    """The sight of some files of a table version, which lie at `paths`."""
    floor_us = version.retained_from_us
    return Sight(
        group,
        paths,
        as_of_us,
        floor_us if floor_us is not None and any(entry.event_time_us_min < floor_us for entry in entries) else None,
        deletes=any(entry.tombstones for entry in entries),
        expiries=any(entry.expiring for entry in entries),
        hard_deletes=any(entry.hard_deletes for entry in entries),
        api_times_repeat=any(entry.foreign_rows for entry in entries),
    )
