"""Where offline bytes live: a flat namespace of immutable objects. One backend per kind of storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object.

    Attributes:
        modified_us: when it was written, microseconds since 1970, by the clock of the storage.
    """

    key: str
    bytes: int
    modified_us: int


class ObjectStore(Protocol):
    """Keys are relative, `/`-separated and made by `offline.layout`. Objects are written once and never changed in place.

    Synchronous; safe to call from several threads and processes. Every method raises StoreUnavailable when the storage
    does not answer.
    """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object, durable and complete when this returns; False, and nothing changed, if it exists already.

        Of concurrent calls for one key exactly one returns True. A reader sees the whole object or none.
        """

    def put_file_if_absent(self, key: str, path: Path) -> bool:
        """As `put_if_absent` with the bytes of a local file, which stays as it is and is the caller's to delete."""

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None if there is none."""

    def list(self, prefix: str) -> Sequence[str]:
        """The keys below a folder (`prefix` ends in `/`), at any depth, in lexicographic order."""

    def scan(self, prefix: str) -> Sequence[ObjectInfo]:
        """As `list`, with sizes and times. An object that is deleted meanwhile may be missing."""

    def page(self, prefix: str, *, after: str, limit: int) -> Sequence[ObjectInfo]:
        """The first `limit` objects whose keys begin with `prefix` and are greater than `after`, by the keys' UTF-8 bytes.

        Unlike in `list`, `prefix` may be any text. An object that is deleted meanwhile may be missing, and fewer than `limit`
        are there only if there are no more. On local disk symbolic links are left out.
        """

    def info(self, key: str) -> ObjectInfo | None:
        """What a listing tells of an object, whose key may be anybody's; None if there is none."""

    def open(self, key: str) -> BinaryIO | None:
        """The bytes of an object, whose key may be anybody's, to be read and sought in; None if there is none.

        It stays readable when the object is deleted. On local disk no symbolic link is followed.
        """

    def move_if_absent(self, source: str, target: str) -> bool:
        """Make `target` an object with the bytes of `source`, as `put_if_absent`; `source` stays until deleted.

        Returns False if `target` exists. A missing `source` is a StoreUnavailable.
        """

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none. What this machine has cached of it goes with it."""

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        """Paths on this machine under which a query engine opens existing objects, in the order of `keys`.

        A remote store fetches what is not here yet; objects never change, so what was fetched once stays right.

        Raises:
            FileVanished: an object is gone (only a remote store can tell; on local disk, opening the path fails).
        """

    def remove_leftovers(self) -> None:
        """Delete what processes of this machine that died had under way. What others have under way stays."""

    def url(self, key: str) -> str:
        """The address of an object for tools outside of this machine or process, there or not: `file:///path` or `s3://...`."""
