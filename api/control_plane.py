"""The SageMaker control plane's feature group operations (JSON 1.1, version 2017-07-24).

One POST with the operation in `X-Amz-Target`; times are seconds since 1970 with a fraction, in both directions. Everything
here blocks on the registry and runs in a worker thread.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec

from api import control_plane_shapes as shapes
from api.wire import JSON_11, Answer, UnknownOperation, decode, json_11_error
from featurestore.errors import Fault, FeatureGroupNotFound, FeatureStoreError, LimitExceeded, ValidationFailed
from featurestore.model import limits
from featurestore.model.feature_group import (
    FeatureDefinition,
    FeatureGroup,
    StorageType,
    description_faults,
    name_of,
    tag_faults,
    validate_group,
)
from featurestore.model.search import SearchResource
from featurestore.registry.protocol import FeatureMetadata, GroupQuery, GroupSort
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T", bound=msgspec.Struct)

TARGET_PREFIX: Final = "SageMaker."
DELETE_WAIT_S: Final = 5.0
"""How long DeleteFeatureGroup waits for the records to be gone; what takes longer goes on in the background."""


class ControlPlane:
    """The operations over one store, by name."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._operations: dict[str, Callable[[bytes], object]] = {
            "CreateFeatureGroup": self._typed(shapes.CreateFeatureGroup, self.create_feature_group),
            "DescribeFeatureGroup": self._typed(shapes.DescribeFeatureGroup, self.describe_feature_group),
            "ListFeatureGroups": self._typed(shapes.ListFeatureGroups, self.list_feature_groups),
            "UpdateFeatureGroup": self._typed(shapes.UpdateFeatureGroup, self.update_feature_group),
            "DeleteFeatureGroup": self._typed(shapes.DeleteFeatureGroup, self.delete_feature_group),
            "DescribeFeatureMetadata": self._typed(shapes.DescribeFeatureMetadata, self.describe_feature_metadata),
            "UpdateFeatureMetadata": self._typed(shapes.UpdateFeatureMetadata, self.update_feature_metadata),
            "Search": self._typed(shapes.Search, self.search),
            "AddTags": self._typed(shapes.AddTags, self.add_tags),
            "ListTags": self._typed(shapes.ListTags, self.list_tags),
            "DeleteTags": self._typed(shapes.DeleteTags, self.delete_tags),
        }

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations, as clients put them behind TARGET_PREFIX."""
        return tuple(self._operations)

    def call(self, target: str, body: bytes) -> Answer:
        """Carry out one request; what the client did wrong is answered in the protocol's error form.

        Raises: our own failures, for the caller to log under the request's id.
        """
        try:
            operation = self._operations.get(target.removeprefix(TARGET_PREFIX))
            if not target:
                raise UnknownOperation("expected the header X-Amz-Target: SageMaker.<operation>")
            if operation is None or not target.startswith(TARGET_PREFIX):
                raise UnknownOperation(f"operation {target!r} is not supported by this version")
            answer = operation(body)
        except FeatureStoreError as error:
            if error.code == "InternalFailure":
                raise
            return json_11_error(error)
        return Answer(200, b"" if answer is None else msgspec.json.encode(answer), JSON_11)

    @staticmethod
    def _typed(kind: type[_T], operation: Callable[[_T], object]) -> Callable[[bytes], object]:
        def call(body: bytes) -> object:
            try:
                request = decode(body or b"{}", kind)
                faults = list(shapes.limit_faults(request))
                if faults:
                    raise ValidationFailed(faults)
                return operation(request)
            except RecursionError as error:  # search expressions may be nested in each other
                raise ValidationFailed.one("body", "JSON with fewer levels of nesting") from error

        return call

    def create_feature_group(self, request: shapes.CreateFeatureGroup) -> object:
        group = self._store.create(request.feature_group())
        return {"FeatureGroupArn": group.arn}

    def describe_feature_group(self, request: shapes.DescribeFeatureGroup) -> object:
        _refuse_token(request.NextToken)
        return shapes.description(self._group(request.FeatureGroupName))

    def list_feature_groups(self, request: shapes.ListFeatureGroups) -> object:
        page = self._store.registry.list(
            GroupQuery(
                name_contains=request.NameContains,
                status=request.FeatureGroupStatusEquals,
                offline_status=request.OfflineStoreStatusEquals,
                created_after_us=shapes.micros(request.CreationTimeAfter),
                created_before_us=shapes.micros(request.CreationTimeBefore),
                sort=request.SortBy or GroupSort.CREATION_TIME,
                descending=request.SortOrder is not shapes.SortOrder.ASCENDING,
                page_rows=request.MaxResults or limits.LIST_PAGE_MAX,
                page_token=request.NextToken,
            )
        )
        answer: dict[str, Any] = {"FeatureGroupSummaries": [shapes.summary(group) for group in page.groups]}
        if page.next_token is not None:
            answer["NextToken"] = page.next_token
        return answer

    def update_feature_group(self, request: shapes.UpdateFeatureGroup) -> object:
        given = [
            name
            for name, value in (
                ("FeatureAdditions", request.FeatureAdditions),
                ("OnlineStoreConfig", request.OnlineStoreConfig),
                ("ThroughputConfig", request.ThroughputConfig),
            )
            if value is not None
        ]
        if len(given) != 1:
            expected = "one of FeatureAdditions, OnlineStoreConfig and ThroughputConfig"
            raise ValidationFailed.one("UpdateFeatureGroup", expected, given or None)

        def change(group: FeatureGroup) -> FeatureGroup:
            if request.FeatureAdditions is not None:
                return _with_features(group, [item.definition() for item in request.FeatureAdditions])
            if request.OnlineStoreConfig is not None:
                return _with_online(group, request.OnlineStoreConfig)
            assert request.ThroughputConfig is not None, "one of the three is given"
            changed = replace(group, throughput=request.ThroughputConfig.throughput(group.throughput))
            validate_group(changed)
            return changed

        group = self._store.update(self._group(request.FeatureGroupName).name, change)
        return {"FeatureGroupArn": group.arn}

    def delete_feature_group(self, request: shapes.DeleteFeatureGroup) -> object:
        self._store.delete_feature_group(request.FeatureGroupName, wait_s=DELETE_WAIT_S)
        return None

    def describe_feature_metadata(self, request: shapes.DescribeFeatureMetadata) -> object:
        group = self._group(request.FeatureGroupName)
        return shapes.feature_metadata(self._store.registry.feature(group.name, request.FeatureName))

    def update_feature_metadata(self, request: shapes.UpdateFeatureMetadata) -> object:
        group = self._group(request.FeatureGroupName)
        faults = list(description_faults("Description", request.Description, limits.FEATURE_DESCRIPTION))
        if faults:
            raise ValidationFailed(faults)
        updated: FeatureMetadata = self._store.registry.update_feature(
            group.name,
            request.FeatureName,
            description=request.Description,
            additions={item.Key: item.Value for item in request.ParameterAdditions or ()},
            removals=request.ParameterRemovals or (),
        )
        _log.debug("feature %s of %s updated", updated.feature_name, group.name)
        return None

    def search(self, request: shapes.Search) -> object:
        query = request.query()
        if request.CrossAccountFilterOption is shapes.CrossAccountFilter.CROSS_ACCOUNT:
            return _hits([], None, 0)  # only one's own are here: no account shares its groups with another
        if query.resource is SearchResource.FEATURE_GROUP:
            groups = self._store.registry.search_groups(query)
            return _hits([shapes.group_record(group) for group in groups.groups], groups.next_token, groups.total)
        found = self._store.registry.search_features(query)
        return _hits([shapes.feature_record(feature) for feature in found.features], found.next_token, found.total)

    def add_tags(self, request: shapes.AddTags) -> object:
        added = shapes.distinct(request.Tags)

        def change(group: FeatureGroup) -> FeatureGroup:
            tags = group.tags | added
            if len(tags) > limits.TAGS_MAX:
                raise LimitExceeded(f"tags of {group.name!r}", limits.TAGS_MAX)
            faults = list(tag_faults(added))
            if faults:
                raise ValidationFailed(faults)
            return replace(group, tags=tags)

        return {"Tags": shapes.tags(self._store.registry.update(self._by_arn(request.ResourceArn).name, change))}

    def list_tags(self, request: shapes.ListTags) -> object:
        _refuse_token(request.NextToken)
        return {"Tags": shapes.tags(self._by_arn(request.ResourceArn))}

    def delete_tags(self, request: shapes.DeleteTags) -> object:
        def change(group: FeatureGroup) -> FeatureGroup:
            return replace(group, tags={key: value for key, value in group.tags.items() if key not in request.TagKeys})

        self._store.registry.update(self._by_arn(request.ResourceArn).name, change)
        return {}

    def _group(self, name_or_arn: str) -> FeatureGroup:
        """The group that a name or an ARN of this store means."""
        name = name_of(name_or_arn)
        group = self._store.feature_group(name)
        if name != name_or_arn and name_or_arn != group.arn:
            raise FeatureGroupNotFound(name_or_arn)
        return group

    def _by_arn(self, arn: str) -> FeatureGroup:
        if limits.FEATURE_GROUP_ARN_PREFIX.match(arn) is None:
            raise ValidationFailed.one("ResourceArn", "the ARN of a feature group", arn)
        return self._group(arn)


def _hits(results: list[dict[str, Any]], token: str | None, total: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"Results": results, "TotalHits": {"Value": total, "Relation": "EqualTo"}}
    if token is not None:
        answer["NextToken"] = token
    return answer


def _refuse_token(token: str | None) -> None:
    """For operations that always answer in one page."""
    if token is not None:
        raise ValidationFailed.one("NextToken", "none, as no answer of this operation has one", token)


def _with_features(group: FeatureGroup, additions: Sequence[FeatureDefinition]) -> FeatureGroup:
    """The group with features appended; faults are located in the request and not in the resulting group."""
    if len(group.features) + len(additions) > limits.FEATURES_PER_GROUP_MAX:
        raise LimitExceeded(f"features of {group.name!r}", limits.FEATURES_PER_GROUP_MAX)
    try:
        return group.with_features(additions)
    except ValidationFailed as error:
        first = len(group.features)
        where = re.compile(r"FeatureDefinitions\[(\d+)\]")
        raise ValidationFailed(
            [
                replace(fault, path=where.sub(lambda at: f"FeatureAdditions[{int(at[1]) - first}]", fault.path))
                for fault in error.faults
            ]
        ) from error


def _with_online(group: FeatureGroup, update: shapes.OnlineStoreConfigUpdate) -> FeatureGroup:
    online = group.online
    if online is None:
        raise ValidationFailed.one("OnlineStoreConfig", "a group with an online store", group.name)
    if update.TtlDuration is not msgspec.UNSET and update.TtlDuration is not None:
        online = replace(online, ttl=update.TtlDuration.duration())
    if update.StorageType is not None:
        current = online.storage_type or StorageType.STANDARD
        allowed = {(StorageType.STANDARD, StorageType.STANDARD_V2), (current, current)}
        if (current, update.StorageType) not in allowed:
            raise ValidationFailed(
                [Fault("OnlineStoreConfig.StorageType", f"{current}, or Standard_V2 from Standard", str(update.StorageType))]
            )
        online = replace(online, storage_type=update.StorageType)
    return replace(group, online=online)
