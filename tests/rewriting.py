"""The effect of a compaction without its reasons: the same rows in other files, and the old files gone at once."""

from __future__ import annotations

import random
import uuid

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.manifest import Delta, Origin, Version, delta_after
from featurestore.offline.table import OfflineStore


def rewrite(offline: OfflineStore, group: FeatureGroup, *, files: int = 1, seed: int = 0) -> bool:
    """Spread the rows of all live files over `files` new ones, at random, and delete the old ones.

    False, and nothing has changed, when somebody else replaced one of them meanwhile.
    """
    root, manifest, objects = layout.group_root(group), offline.manifest(group), offline.objects
    old = manifest.current().files
    try:
        # Not read_table: it takes the directories of the layout for columns.
        tables = [pq.ParquetFile(path).read() for path in offline.paths(group, old)]
    except FileNotFoundError:
        return False
    table = pa.concat_tables(tables, promote_options="default")
    new = []
    for rows in np.array_split(random.Random(seed).sample(range(table.num_rows), table.num_rows), files):
        if not len(rows):
            continue
        piece = schema.sorted_rows(group, table.take(rows))
        latest_us = piece[schema.EVENT_TIME].cast(pa.int64()).to_numpy().max()
        key = layout.opt_key(root, int(latest_us), layout.token(root, layout.FileKind.COMPACTION, uuid.uuid4().hex))
        data = schema.parquet_bytes(piece)
        objects.put_if_absent(key, data)
        entry = schema.entry_of(piece, key.removeprefix(f"{root}/"), len(data), group.schema_version, Origin.COMPACTION)
        # Which of the rows came from other tools is no longer known; that some did is.
        foreign_rows = entry.rows if any(entry.foreign_rows for entry in old) else 0
        new.append(msgspec.structs.replace(entry, foreign_rows=foreign_rows))
    removed = [entry.path for entry in old]

    def plan(state: Version) -> Delta | None:
        return delta_after(state, add=new, remove=removed) if state.holds(removed) else None

    version = manifest.commit(plan)
    done = version.holds([entry.path for entry in new]) and not set(removed) & {entry.path for entry in version.files}
    for entry in old if done else new:
        objects.delete(f"{root}/{entry.path}")
    return done
