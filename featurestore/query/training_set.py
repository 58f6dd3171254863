"""Training sets: a spine, and features of one or more groups as of each row's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import Fault, ValidationFailed
from featurestore.model.columns import key_column, time_column
from featurestore.model.feature_group import FeatureGroup
from featurestore.query.point_in_time import KEY, TIME

if TYPE_CHECKING:
    import pandas as pd

EVENT_TIME_SUFFIX: Final = "_event_time"
"""`<group>._event_time` is the event time of the matched record. Features can't start with an underscore."""


@dataclass(frozen=True, slots=True)
class FeatureSelection:
    """Which features of one group go to which columns: (feature name, output column) pairs."""

    group: FeatureGroup
    features: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The spine's columns followed by the selected features, one row per spine row in spine order.

    Attributes:
        spine: the spine as given, as Arrow.
        features: the joined columns; Integral int64, Fractional double, String string; null where there is no answer.
        manifest_versions: per group the table version that was read.
        took_s: seconds per step: flush, plan, and one `join <group>` per group.
    """

    spine: pa.Table
    features: pa.Table
    manifest_versions: Mapping[str, int]
    took_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return int(self.spine.num_rows)

    def to_arrow(self) -> pa.Table:
        table = self.spine
        for name in self.features.column_names:
            table = table.append_column(self.features.schema.field(name), self.features[name])
        return table

    def to_pandas(self) -> pd.DataFrame:
        """As a DataFrame with a fresh index. Integral features are `Int64`, and so are integer columns of the spine with missing
        values: a missing value never turns a column of integers into floats.
        """
        import pandas as pd

        nullable = {pa.int64(): pd.Int64Dtype()}.get
        columns = {
            name: self.spine[name].to_pandas(types_mapper=nullable if self.spine[name].null_count else None)
            for name in self.spine.column_names
        }
        features = self.features.to_pandas(types_mapper=nullable)
        return pd.DataFrame(columns | dict(features.items()))

    def to_parquet(self, path: str | Path) -> Path:
        """Write the training set as one Parquet file and return its path."""
        target = Path(path)
        pq.write_table(self.to_arrow(), target, compression="zstd")
        return target


def select_features(
    wanted: Sequence[str] | Mapping[str, str], group_of: Mapping[str, FeatureGroup], spine_columns: Sequence[str]
) -> list[FeatureSelection]:
    """Resolve feature references into one selection per group, groups in order of first mention.

    Args:
        wanted: `"group.feature"` or `"group.*"` (all features but the identifier and the event time); as a mapping, from
            output column to `"group.feature"`. Without a mapping a column is called `group.feature`.
        group_of: the groups that are mentioned.

    Raises:
        ValidationFailed: a reference names no feature, or two output columns have one name.
    """
    pairs = list(wanted.items()) if isinstance(wanted, Mapping) else [(None, reference) for reference in wanted]
    faults: list[Fault] = []
    selected: dict[str, list[tuple[str, str]]] = {}
    taken = dict.fromkeys(spine_columns, "a column of the spine")
    for position, (output, reference) in enumerate(pairs):
        path = f"features[{position}]" if output is None else f"features[{output!r}]"
        group_name, _, feature = reference.partition(".")
        group = group_of[group_name]
        if feature == "*" and output is None:
            names = [name for name in group.feature_names if name not in (group.record_identifier, group.event_time)]
        elif group.feature(feature) is not None:
            names = [feature]
        else:
            faults.append(Fault(path, f"'{group_name}.<feature>' with a feature of {group_name!r}", reference))
            continue
        for name in names:
            column = f"{group_name}.{name}" if output is None else output
            if column in taken:
                faults.append(Fault(path, f"an output column that is not yet {taken[column]}", column))
            taken[column] = f"the column of {reference!r}"
            selected.setdefault(group_name, []).append((name, column))
    if not pairs:
        faults.append(Fault("features", "at least one 'group.feature'"))
    if faults:
        raise ValidationFailed(faults)
    return [FeatureSelection(group_of[name], tuple(columns)) for name, columns in selected.items()]


def referenced_groups(wanted: Sequence[str] | Mapping[str, str]) -> list[str]:
    """The group names in feature references, in order of first mention.

    Raises:
        ValidationFailed: a reference is not of the form `group.feature`.
    """
    references = list(wanted.values()) if isinstance(wanted, Mapping) else list(wanted)
    faults = [
        Fault(f"features[{position}]", "'group.feature' or 'group.*'", reference)
        for position, reference in enumerate(references)
        if not isinstance(reference, str) or not all(reference.partition("."))
    ]
    if faults:
        raise ValidationFailed(faults)
    return list(dict.fromkeys(reference.partition(".")[0] for reference in references))


def spine_times(spine: pa.Table, column: str) -> pa.Array:
    """The spine's time column as timestamp[us, UTC].

    Raises:
        ValidationFailed: there is no such column, or its values are not instants.
    """
    return time_column(_column(spine, column, "event_time"), path=column)


def join_spine(spine: pa.Table, group: FeatureGroup, key: str, times: pa.Array) -> pa.Table:
    """The table of `key` and `time` that one group is joined to.

    Raises:
        ValidationFailed: the key column is missing, or its values can't be identifiers of the group.
    """
    values = _column(spine, key, f"keys[{group.name!r}]")
    keys: Any = key_column(values, group.record_identifier_type, path=key)
    return pa.table({KEY: keys, TIME: times})


def _column(spine: pa.Table, name: str, path: str) -> pa.ChunkedArray:
    if name not in spine.column_names:
        raise ValidationFailed.one(path, f"a column of the spine, which has {spine.column_names}", name)
    return spine[name]
