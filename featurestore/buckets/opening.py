"""Which buckets a URL means: the one place that names the backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from featurestore.buckets.folder import FolderBuckets
from featurestore.buckets.overlay import OverlaidBuckets
from featurestore.buckets.protocol import Buckets
from featurestore.buckets.s3 import S3Buckets
from featurestore.errors import StoreUnavailable
from featurestore.offline.opening import ENDPOINT
from featurestore.offline.protocol import ObjectStore
from featurestore.settings import Settings


def open_buckets(settings: Settings, offline: ObjectStore, known: Callable[[], Collection[str]]) -> Buckets:
    """The buckets of `settings.buckets_location`: `file:///path`, with the offline layout shown in them, or `s3://`.

    Args:
        known: as for `OverlaidBuckets`.

    Raises:
        StoreUnavailable: the URL is malformed, or the storage can't be used; see `FolderBuckets` and `S3Buckets`.
    """
    url = settings.buckets_location
    if url.startswith("file:///"):
        return OverlaidBuckets(FolderBuckets(Path(url.removeprefix("file://"))), offline, known=known)
    if url == "s3://":
        cache = settings.home.absolute() / "cache" / "buckets"
        return S3Buckets(endpoint=os.environ.get(ENDPOINT) or None, cache=cache, cache_bytes_max=settings.offline_cache_bytes_max)
    raise StoreUnavailable("open buckets", "expected file:///path or s3://", hint="see FEATURESTORE_BUCKETS_URL")
