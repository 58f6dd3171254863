"""The offline store as one thing: the manifests of all groups over one object store."""

from __future__ import annotations

import threading

from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout
from featurestore.offline.batch import BatchWriter
from featurestore.offline.manifest import FileEntry, Manifest
from featurestore.offline.protocol import ObjectStore


class OfflineStore:
    """Opens the table of each group once. Safe to use from several threads."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self.batches = BatchWriter(objects)
        self._manifests: dict[str, Manifest] = {}
        self._lock = threading.Lock()

    def manifest(self, group: FeatureGroup) -> Manifest:
        """The manifest of a group that has an offline store."""
        root = layout.group_root(group)
        with self._lock:
            return self._manifests.setdefault(root, Manifest(self.objects, root))

    def locate(self, group: FeatureGroup, entry: FileEntry) -> str:
        """The path or URL under which a query engine opens a data file."""
        return self.objects.locate(f"{layout.group_root(group)}/{entry.path}")
