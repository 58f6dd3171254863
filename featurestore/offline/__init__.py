"""The history of every record as Parquet files that any tool can read."""

from featurestore.offline.manifest import FileEntry, Manifest, Version
from featurestore.offline.protocol import ObjectStore
from featurestore.offline.table import OfflineStore
from featurestore.offline.writer import Drained, OfflineWriter

__all__ = ["Drained", "FileEntry", "Manifest", "ObjectStore", "OfflineStore", "OfflineWriter", "Version"]
