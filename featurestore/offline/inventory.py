"""Inventory: every file in a group's folder, and what it is to the table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout
from featurestore.offline.foreign import why_ignored
from featurestore.offline.manifest import FileEntry, ForeignFile, ForeignState, Origin, Version
from featurestore.offline.protocol import ObjectInfo
from featurestore.offline.table import OfflineStore


class State(StrEnum):
    """What a file is to the table."""

    LIVE = "live"
    """Queries read it."""
    MISSING = "missing"
    """Queries would read it, but it is gone."""
    CHANGED = "changed"
    """It has another size than when it was written or adopted. Of an adopted file the rows of then count."""
    QUARANTINED = "quarantined"
    """Another tool's; it can't be part of the table."""
    NEW = "new"
    """Another tool's; nobody has looked at it yet."""
    ADOPTED = "adopted"
    """Another tool's; its rows are in live files."""
    SUPERSEDED = "superseded"
    """Its rows are in other files; it stays for tools that read the layout by path. Or its write is not finished."""
    GARBAGE = "garbage"
    """It waits for its deletion."""
    IGNORED = "ignored"
    """It does not claim to be data."""


@dataclass(frozen=True, slots=True)
class FileState:
    """One file.

    Attributes:
        path: below the group's folder.
        rows: None where nobody has counted them.
        origin: of a file of our own that is live; foreign for files of other tools.
        event_time_us_min, event_time_us_max: microseconds since 1970, as far as the manifest knows them.
        reason: for quarantined, changed and ignored files.
    """

    state: State
    path: str
    bytes: int
    rows: int | None = None
    origin: Origin | None = None
    event_time_us_min: int | None = None
    event_time_us_max: int | None = None
    reason: str = ""


def inventory(offline: OfflineStore, group: FeatureGroup) -> list[FileState]:
    """The files in a group's `data/` and `opt/`, and those that should be there, by path.

    Raises:
        StoreUnavailable, StoreCorrupt
    """
    root = layout.group_root(group)
    version = offline.manifest(group).current()
    scanned = [*offline.objects.scan(f"{root}/data/"), *offline.objects.scan(f"{root}/opt/")]
    found = {info.key.removeprefix(f"{root}/"): info for info in scanned}
    live = {entry.path: entry for entry in version.files}
    garbage = {item.path for item in version.garbage}
    states = [_live(entry, found.get(path)) for path, entry in live.items()]
    states += [_other(root, version, garbage, path, info) for path, info in found.items() if path not in live]
    return sorted(states, key=lambda file: file.path)


def _live(entry: FileEntry, info: ObjectInfo | None) -> FileState:
    state, reason, size = State.LIVE, "", entry.bytes
    if info is None:
        state = State.MISSING
    elif info.bytes != entry.bytes:
        state, reason, size = State.CHANGED, f"had {entry.bytes} bytes when it was written", info.bytes
    return FileState(
        state, entry.path, size, entry.rows, entry.origin, entry.event_time_us_min, entry.event_time_us_max, reason=reason
    )


def _other(root: str, version: Version, garbage: set[str], path: str, info: ObjectInfo) -> FileState:
    if path in garbage:
        return FileState(State.GARBAGE, path, info.bytes)
    if layout.kind_of(root, path) is not None:
        if path.startswith("opt/"):
            return FileState(State.GARBAGE, path, info.bytes, reason="left over, or its write is not finished")
        return FileState(State.SUPERSEDED, path, info.bytes)
    known = version.foreign.get(path)
    if known is not None:
        return _foreign(known, info)
    reason = why_ignored(path) if path.startswith("data/") else "outside data/"
    if reason is not None:
        shown = path.encode(errors="backslashreplace").decode()
        return FileState(State.IGNORED, shown, info.bytes, reason=reason)
    return FileState(State.NEW, path, info.bytes, origin=Origin.FOREIGN)


def _foreign(known: ForeignFile, info: ObjectInfo) -> FileState:
    if known.state is ForeignState.QUARANTINED:
        return FileState(State.QUARANTINED, known.path, info.bytes, origin=Origin.FOREIGN, reason=known.reason)
    state, reason = State.ADOPTED, ""
    if info.bytes != known.bytes:
        state, reason = State.CHANGED, f"changed since adoption: had {known.bytes} bytes"
    return FileState(
        state, known.path, info.bytes, known.rows, Origin.FOREIGN, event_time_us_max=known.event_time_us_max, reason=reason
    )
