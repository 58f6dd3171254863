"""The manifest of one group: the versioned list of its data files.

Each version is one object that holds the difference to the version before; creating the object of version N+1 is the commit,
so of concurrent committers one wins and the others look again. Readers plan from one version and pass its exact file list on.

Besides the live files it keeps what else is known of the group's folder: files of other tools and what became of them,
objects that nobody needs any more, how many rows there must be, and from which event time on history is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from featurestore.decoding import decode_json
from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.offline import layout
from featurestore.offline.protocol import ObjectStore

FORMAT_VERSION: Final = 2
CHECKPOINT_VERSIONS: Final = 100
"""A whole state is written every so many versions, so that opening reads at most this many differences."""
COMMIT_ATTEMPTS_MAX: Final = 1000
"""Lost races before a commit gives up: each lost race is another writer's success."""
VERSIONS_KEPT_S: Final = 7 * 24 * 3600
"""How long the object of a version stays after a checkpoint has made it unnecessary."""
STATE_FRESH_S: Final = 3600.0
"""How long a state may be carried on by later versions before it is read anew. Much shorter than VERSIONS_KEPT_S: who asks for
the next version and finds none must be sure that there is none, not that it was deleted."""
BATCHES_KEPT_MAX: Final = 1000
"""Batch ids remembered, so that completing an interrupted batch never adds its files twice."""


class Origin(StrEnum):
    STREAM = "stream"
    """Written from the change log."""
    BATCH = "batch"
    """Written by a batch ingest."""
    FOREIGN = "foreign"
    """Adopted from a file that another tool put into the layout."""
    COMPACTION = "compaction"
    """Merged from other files."""
    ERASURE = "erasure"
    """A file without the rows of an erased record."""


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One data file. Times are microseconds since 1970; minima and maxima are inclusive.

    Attributes:
        path: below the group's folder, starting with `data/` or `opt/`.
        tombstones: rows that are delete markers; `hard_deletes` of them forget the event time.
        expiring: rows with an expiry.
        foreign_rows: rows that other tools wrote, whose API times need not be unique.
    """

    path: str
    bytes: int
    rows: int
    event_time_us_min: int
    event_time_us_max: int
    write_time_us_min: int
    write_time_us_max: int
    api_time_us_min: int
    api_time_us_max: int
    schema_version: int
    origin: Origin
    tombstones: int = 0
    hard_deletes: int = 0
    expiring: int = 0
    foreign_rows: int = 0


class ForeignState(StrEnum):
    ADOPTED = "adopted"
    """Its rows are in the table, in files of our own; the file itself is left alone."""
    QUARANTINED = "quarantined"
    """It can't be part of the table; `reason` says why."""


class ForeignFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that another tool put into the layout.

    Attributes:
        path: below the group's folder.
        bytes: its size when it was looked at; another size means that it was replaced since.
        at_us: when it was looked at.
        rows: rows adopted.
        event_time_us_max: greatest event time of the adopted rows.
    """

    path: str
    bytes: int
    state: ForeignState
    at_us: int
    rows: int = 0
    reason: str = ""
    event_time_us_max: int | None = None


class Garbage(msgspec.Struct, frozen=True):
    """An object that no version from `since_us` on needs; queries planned earlier may still read it."""

    path: str
    since_us: int


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The difference between a version and the one before: the content of a version object.

    Attributes:
        add, remove: live files, and paths that are live no longer.
        positions: per shard (as text) the log position up to which the group's changes are in the table.
        batch: id of the batch ingest whose files this version adds.
        streamed: per shard (as text) rows that this version adds from the change log.
        rows: per shard (as text) by how much the rows of the table grow, or shrink.
        foreign: files of other tools, looked at anew.
        forget_foreign: paths of such files that are gone.
        trash: paths that became garbage with this version.
        swept: paths of garbage that is deleted.
        retained_from_us: event time below which history ended with this version.
    """

    version: int
    committed_at_us: int
    format: int = FORMAT_VERSION
    add: tuple[FileEntry, ...] = ()
    remove: tuple[str, ...] = ()
    positions: dict[str, int] = {}
    batch: str | None = None
    streamed: dict[str, int] = {}
    rows: dict[str, int] = {}
    foreign: tuple[ForeignFile, ...] = ()
    forget_foreign: tuple[str, ...] = ()
    trash: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    retained_from_us: int | None = None


class Version(msgspec.Struct, frozen=True, omit_defaults=True):
    """One state of the table: the content of a checkpoint, and what readers plan from.

    Attributes:
        streamed: per shard (as text) rows that ever came from the change log.
        rows: per shard (as text) rows that the live files must hold.
        foreign: by path.
        retained_from_us: rows with an earlier event time do not count any more, whether or not their file is gone.
    """

    version: int = 0
    format: int = FORMAT_VERSION
    committed_at_us: int = 0
    files: tuple[FileEntry, ...] = ()
    positions: dict[str, int] = {}
    batches: tuple[str, ...] = ()
    streamed: dict[str, int] = {}
    rows: dict[str, int] = {}
    foreign: dict[str, ForeignFile] = {}
    garbage: tuple[Garbage, ...] = ()
    retained_from_us: int | None = None

    def offset_next(self, shard: int) -> int:
        """The first log position of a shard that is not in the table."""
        return self.positions.get(str(shard), 1)

    def holds(self, paths: Collection[str]) -> bool:
        """Whether all of these files are live."""
        return set(paths) <= {entry.path for entry in self.files}

    def after(self, delta: Delta) -> Version:
        removed = set(delta.remove)
        kept = tuple(entry for entry in self.files if entry.path not in removed) if removed else self.files
        positions = {
            shard: max(self.positions.get(shard, 1), delta.positions.get(shard, 1))
            for shard in self.positions.keys() | delta.positions.keys()
        }
        batches = self.batches if delta.batch is None else (*self.batches, delta.batch)[-BATCHES_KEPT_MAX:]
        foreign = self.foreign
        if delta.foreign or delta.forget_foreign:
            foreign = {path: file for path, file in foreign.items() if path not in delta.forget_foreign}
            foreign |= {file.path: file for file in delta.foreign}
        garbage = self.garbage
        if delta.trash or delta.swept:
            swept = set(delta.swept)
            fresh = (Garbage(path, delta.committed_at_us) for path in delta.trash)
            garbage = (*(item for item in garbage if item.path not in swept), *fresh)
        floors = [floor for floor in (self.retained_from_us, delta.retained_from_us) if floor is not None]
        return Version(
            delta.version,
            delta.format,
            delta.committed_at_us,
            (*kept, *delta.add),
            positions,
            batches,
            _sums(self.streamed, delta.streamed),
            _sums(self.rows, delta.rows),
            foreign,
            garbage,
            max(floors, default=None),
        )


def _sums(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    if not more:
        return counts
    return {shard: counts.get(shard, 0) + more.get(shard, 0) for shard in counts.keys() | more.keys()}


_T = TypeVar("_T", Delta, Version)

Plan = Callable[[Version], Delta | None]


class Manifest:
    """The manifest of the group whose folder is `root`. Safe to use from several threads and processes."""

    def __init__(self, objects: ObjectStore, root: str) -> None:
        self._objects = objects
        self._root = root
        self._lock = threading.Lock()
        self._state: Version | None = None
        self._looked_s = 0.0

    def current(self) -> Version:
        """The newest version; version 0 is the empty table.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        with self._lock:
            return self._refresh()

    def commit(self, plan: Plan) -> Version:
        """Commit what `plan` makes of the newest version; it is asked again whenever another writer was faster.

        `plan` returns None when there is nothing (left) to do; the newest version is then returned unchanged.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        with self._lock:
            for _ in range(COMMIT_ATTEMPTS_MAX):
                state = self._refresh()
                delta = plan(state)
                if delta is None:
                    return state
                if self._objects.put_if_absent(layout.version_key(self._root, delta.version), msgspec.json.encode(delta)):
                    self._state = state = state.after(delta)
                    if state.version % CHECKPOINT_VERSIONS == 0:
                        self._objects.put_if_absent(layout.checkpoint_key(self._root, state.version), msgspec.json.encode(state))
                    return state
        raise StoreUnavailable("commit manifest", f"{self._root}: lost {COMMIT_ATTEMPTS_MAX} races in a row")

    def prune(self) -> int:
        """Delete objects of versions that a checkpoint has made unnecessary for VERSIONS_KEPT_S; returns how many."""
        keys = self._objects.list(f"{self._root}/manifest/")
        checkpoints = [key for key in keys if "/checkpoint-" in key]
        oldest_us = time.time_ns() // 1000 - VERSIONS_KEPT_S * 1_000_000
        for newest in reversed(checkpoints):
            data = self._objects.get(newest)
            if data is None:
                return 0
            state = _decode(data, Version, newest)
            if state.committed_at_us < oldest_us:
                last = layout.version_key(self._root, state.version)
                unneeded = [key for key in keys if (key < newest if key in checkpoints else key <= last)]
                for key in unneeded:
                    self._objects.delete(key)
                return len(unneeded)
        return 0

    def _refresh(self) -> Version:
        now_s = time.time()
        if self._state is None or not 0 <= now_s - self._looked_s < STATE_FRESH_S:
            self._state = self._newest_checkpoint()
        self._looked_s = now_s
        state = self._state
        while True:
            data = self._objects.get(layout.version_key(self._root, state.version + 1))
            if data is None:
                self._state = state
                return state
            state = state.after(_decode(data, Delta, f"{self._root} version {state.version + 1}"))

    def _newest_checkpoint(self) -> Version:
        keys = [key for key in self._objects.list(f"{self._root}/manifest/") if "/checkpoint-" in key]
        if not keys:
            return Version()
        data = self._objects.get(keys[-1])
        if data is None:
            raise StoreUnavailable("read manifest", f"{keys[-1]} vanished while it was read")
        return _decode(data, Version, keys[-1])


def delta_after(
    state: Version,
    *,
    add: Sequence[FileEntry] = (),
    remove: Sequence[str] = (),
    positions: Mapping[int, int] | None = None,
    batch: str | None = None,
    streamed: Mapping[int, int] | None = None,
    rows: Mapping[int, int] | None = None,
    foreign: Sequence[ForeignFile] = (),
    forget_foreign: Sequence[str] = (),
    trash: Sequence[str] = (),
    swept: Sequence[str] = (),
    retained_from_us: int | None = None,
) -> Delta:
    """The version object that follows `state`. Commit times rise from version to version."""
    return Delta(
        state.version + 1,
        max(time.time_ns() // 1000, state.committed_at_us + 1),
        add=tuple(add),
        remove=tuple(remove),
        positions=_by_text(positions),
        batch=batch,
        streamed=_by_text(streamed),
        rows=_by_text(rows),
        foreign=tuple(foreign),
        forget_foreign=tuple(forget_foreign),
        trash=tuple(trash),
        swept=tuple(swept),
        retained_from_us=retained_from_us,
    )


def _by_text(by_shard: Mapping[int, int] | None) -> dict[str, int]:
    return {str(shard): count for shard, count in (by_shard or {}).items()}


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        value = decode_json(data, kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(what, str(error)) from error
    found = getattr(value, "format", None)
    if found != FORMAT_VERSION:
        raise StoreCorrupt(what, f"format {found}, this release reads {FORMAT_VERSION}")
    return value
