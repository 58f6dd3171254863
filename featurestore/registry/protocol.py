"""The registry: which feature groups exist and what they are.

All of its methods are synchronous and safe to call from several threads and several processes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from featurestore.model.feature_group import FeatureGroup, FeatureType, GroupStatus, OfflineStatus
from featurestore.model.search import EVERYTHING, Junction, Property, SearchResource
from featurestore.model.stream import Stream


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """What is decided once, when a store is created, and holds for everything in it."""

    account_id: str = "000000000000"
    region: str = "us-east-1"
    shards: int = 4


@dataclass(frozen=True, slots=True)
class FeatureMetadata:
    """Description and parameters of one feature. Parameters keep the order they were added in."""

    group_name: str
    group_arn: str
    feature_name: str
    feature_type: FeatureType
    created_at_us: int
    modified_at_us: int
    description: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)


class GroupSort(StrEnum):
    NAME = "Name"
    STATUS = "FeatureGroupStatus"
    OFFLINE_STATUS = "OfflineStoreStatus"
    CREATION_TIME = "CreationTime"


@dataclass(frozen=True, slots=True)
class GroupQuery:
    """Which groups to list. Times are exclusive bounds in microseconds since 1970; `page_token` is a former answer's."""

    name_contains: str | None = None
    status: GroupStatus | None = None
    offline_status: OfflineStatus | None = None
    created_after_us: int | None = None
    created_before_us: int | None = None
    sort: GroupSort = GroupSort.CREATION_TIME
    descending: bool = True
    page_rows: int = 100
    page_token: str | None = None


@dataclass(frozen=True, slots=True)
class GroupPage:
    groups: Sequence[FeatureGroup]
    next_token: str | None


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to search for.

    Attributes:
        sort: a property with one value (`model.search.check_sort`); what has none comes before all that have one.
        visible: (key, value) of tags: a group that has the tag with another value is left out, with its features.
        page_token: a former answer's to the same query, whatever its page size.
    """

    resource: SearchResource
    sort: Property
    where: Junction = EVERYTHING
    descending: bool = True
    visible: tuple[tuple[str, str], ...] = ()
    page_rows: int = 100
    page_token: str | None = None


@dataclass(frozen=True, slots=True)
class GroupHits:
    """One page of what was found; `total` counts all pages, exactly."""

    groups: Sequence[FeatureGroup]
    next_token: str | None
    total: int


@dataclass(frozen=True, slots=True)
class FeatureHits:
    """One page of what was found; `total` counts all pages, exactly."""

    features: Sequence[FeatureMetadata]
    next_token: str | None
    total: int


@dataclass(frozen=True, slots=True)
class WantedIdentity:
    """What an operator asks of a store's identity; None takes what the store has, or the default for a new one."""

    account_id: str | None = None
    region: str | None = None
    shards: int | None = None


class Registry(Protocol):
    def identity(self) -> StoreIdentity:
        """The identity that the store was created with."""

    def version(self) -> int:
        """A number that grows with every change of any group; equal numbers mean nothing changed."""

    def create(self, group: FeatureGroup) -> FeatureGroup:
        """Add a checked group under a fresh `group_id`; account, region, times and resolved names are filled in.

        Of concurrent creations of one name exactly one succeeds. A group whose catalog table is another group's already is
        there afterwards in status CreateFailed with the reason; it takes no records and can be deleted.

        Raises:
            FeatureGroupInUse: the name is taken, or its former holder is still being deleted.
            LimitExceeded: there are FEATURE_GROUPS_MAX groups.
        """

    def get(self, name: str) -> FeatureGroup:
        """The live group of that name, whatever its status.

        Raises:
            FeatureGroupNotFound
        """

    def get_by_id(self, group_id: int) -> FeatureGroup:
        """The group with that key, deleted ones included: their changes may still wait for the offline store.

        Raises:
            FeatureGroupNotFound
        """

    def list(self, query: GroupQuery) -> GroupPage:
        """One page of live groups.

        Raises:
            ValidationFailed: the page token is not one of this registry's.
        """

    def search_groups(self, query: SearchQuery) -> GroupHits:
        """One page of the live groups that meet a query.

        What meets it all the while is on exactly one page, whatever is added or removed between pages, unless the value
        that is sorted by changes.

        Raises:
            ValidationFailed: the page token is not one of this query's.
        """

    def search_features(self, query: SearchQuery) -> FeatureHits:
        """The same for features of live groups."""

    def update(self, name: str, change: Callable[[FeatureGroup], FeatureGroup]) -> FeatureGroup:
        """Replace a group by what `change` makes of it, in one transaction; `change` may raise to leave it as it is.

        Raises:
            FeatureGroupNotFound
        """

    def begin_delete(self, name: str) -> FeatureGroup:
        """Put a group in status Deleting: its name stays taken, its records are to be treated as gone.

        Raises:
            FeatureGroupNotFound
        """

    def fail_delete(self, group_id: int, reason: str) -> None:
        """Note why the deletion of a group in status Deleting did not finish: DeleteFailed, until it is begun again."""

    def finish_delete(self, group_id: int) -> None:
        """Free the name of a group whose deletion has begun. Repeating it changes nothing."""

    def deleting(self) -> Sequence[FeatureGroup]:
        """Groups whose deletion has begun and not finished, in status Deleting or DeleteFailed."""

    def streams(self) -> Sequence[Stream]:
        """All streams, by name."""

    def add_stream(self, stream: Stream) -> None:
        """Add a checked stream.

        Raises:
            StreamInUse: the name is taken.
        """

    def update_stream(self, name: str, change: Callable[[Stream], Stream]) -> Stream:
        """Replace a stream by what `change` makes of it, in one transaction; the name stays.

        Raises:
            StreamNotFound
        """

    def remove_stream(self, name: str) -> Stream:
        """Forget a stream; returns what it was.

        Raises:
            StreamNotFound
        """

    def feature(self, name: str, feature_name: str) -> FeatureMetadata:
        """Metadata of one feature.

        Raises:
            FeatureGroupNotFound: no such group, or no such feature in it.
        """

    def update_feature(
        self,
        name: str,
        feature_name: str,
        *,
        description: str | None,
        additions: dict[str, str],
        removals: Sequence[str],
    ) -> FeatureMetadata:
        """Change the metadata of one feature: None keeps the description, the empty text removes it; additions overwrite.

        Raises:
            FeatureGroupNotFound, LimitExceeded (more than FEATURE_PARAMETERS_MAX parameters)
        """

    def close(self) -> None:
        """Release connections."""
