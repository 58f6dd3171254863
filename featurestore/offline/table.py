"""The offline store as one thing: the manifests of all groups over one object store."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout
from featurestore.offline.batch import BatchWriter
from featurestore.offline.ledger import Ledger
from featurestore.offline.manifest import FileEntry, Manifest
from featurestore.offline.protocol import ObjectStore


class OfflineStore:
    """Opens the table of each group once. Safe to use from several threads."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self.ledger = Ledger(objects)
        self.batches = BatchWriter(objects, self.ledger)
        self._manifests: dict[str, Manifest] = {}
        self._lock = threading.Lock()

    def manifest(self, group: FeatureGroup) -> Manifest:
        """The manifest of a group that has an offline store."""
        root = layout.group_root(group)
        with self._lock:
            return self._manifests.setdefault(root, Manifest(self.objects, root))

    def paths(self, group: FeatureGroup, entries: Sequence[FileEntry]) -> Sequence[str]:
        """Paths on this machine under which a query engine opens data files of a group, in order."""
        root = layout.group_root(group)
        return self.objects.paths([f"{root}/{entry.path}" for entry in entries])
