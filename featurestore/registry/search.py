"""Search in SQL: checked expressions as conditions on the registry's tables, and what keeps those tables current.

One statement finds a page and one counts, so that answers are those of the database and no process holds a copy of it
(docs/decisions/0021-search-in-sql.md).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import sqlalchemy as sa

from featurestore.decoding import decode_json
from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import FeatureDefinition, FeatureGroup, FeatureType
from featurestore.model.search import (
    Condition,
    Junction,
    Kind,
    OneElement,
    Operator,
    Property,
    Requirement,
    Scope,
    SearchResource,
    Span,
    counts_as_false,
    group_values,
)
from featurestore.registry.protocol import FeatureHits, FeatureMetadata, GroupHits, SearchQuery
from featurestore.registry.tables import feature_parameters, features, group_search, group_tags, groups

_Test = sa.ColumnElement[bool]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_LEAST: Final = -(2**62)
"""What a missing number or time sorts as."""
_DEFINITION_COLUMNS: Final[Mapping[str, sa.Column[Any]]] = {
    "FeatureDefinitions.FeatureName": features.c.name,
    "FeatureDefinitions.FeatureType": features.c.type,
    "FeatureDefinitions.CollectionType": features.c.collection,
    "FeatureDefinitions.CollectionConfig.VectorConfig.Dimension": features.c.dimension,
}


def store_group(connection: sa.Connection, group: FeatureGroup) -> None:
    """Make the tables say what the group is now; its features are `store_features`' business."""
    for table in (group_search, group_tags):
        connection.execute(table.delete().where(table.c.group_id == group.group_id))
    connection.execute(group_search.insert().values({"group_id": group.group_id, **group_values(group)}))
    if group.tags:
        rows = [{"group_id": group.group_id, "key": key, "value": value} for key, value in group.tags.items()]
        connection.execute(group_tags.insert(), rows)


def forget_group(connection: sa.Connection, group_id: int) -> None:
    """Remove what the tables hold of a group that is gone."""
    for table in (group_search, group_tags, feature_parameters, features):
        connection.execute(table.delete().where(table.c.group_id == group_id))


def feature_columns(position: int, feature: FeatureDefinition) -> dict[str, object]:
    """The columns of `feature` that repeat its definition."""
    return {
        "position": position,
        "type": feature.type.value,
        "collection": None if feature.collection is None else feature.collection.value,
        "dimension": feature.dimension,
    }


def store_parameters(connection: sa.Connection, group_id: int, feature: str, parameters: Mapping[str, str]) -> None:
    """Make the table say which parameters a feature has now."""
    table = feature_parameters
    connection.execute(table.delete().where(table.c.group_id == group_id, table.c.feature == feature))
    rows = [{"group_id": group_id, "feature": feature, "key": key, "value": value} for key, value in parameters.items()]
    if rows:
        connection.execute(table.insert(), rows)


def contains(connection: sa.Connection, column: sa.ColumnElement[Any], text: str) -> _Test:
    """Whether a column's text has another text in it, case and wildcards taken as they are."""
    find = sa.func.strpos if connection.dialect.name == "postgresql" else sa.func.instr
    return find(column, text) > 0


def by_code_point(connection: sa.Connection, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """A text column to sort by, the same way on every database."""
    return sa.collate(column, "C") if connection.dialect.name == "postgresql" else column


def find_groups(connection: sa.Connection, query: SearchQuery) -> GroupHits:
    """See `registry.protocol.Registry.search_groups`."""
    source = groups.join(group_search, groups.c.group_id == group_search.c.group_id)
    rows, token, total = _page(connection, query, source, [groups.c.document, groups.c.group_id], [groups.c.group_id], "")
    return GroupHits([decode_json(row.document, FeatureGroup) for row in rows], token, total)


def find_features(connection: sa.Connection, query: SearchQuery, arn_prefix: str) -> FeatureHits:
    """See `registry.protocol.Registry.search_features`.

    Args:
        arn_prefix: the ARN of a group without its name.
    """
    source = features.join(groups, groups.c.group_id == features.c.group_id)
    columns = [
        groups.c.name.label("group_name"),
        *(features.c[name] for name in ("group_id", "name", "position", "type", "created_at_us", "modified_at_us")),
        features.c.description,
        features.c.parameters,
    ]
    rows, token, total = _page(connection, query, source, columns, [features.c.group_id, features.c.position], arn_prefix)
    found = [
        FeatureMetadata(
            row.group_name,
            arn_prefix + row.group_name,
            row.name,
            FeatureType(row.type),
            row.created_at_us,
            row.modified_at_us,
            row.description,
            decode_json(row.parameters, dict[str, str]),
        )
        for row in rows
    ]
    return FeatureHits(found, token, total)


def _page(
    connection: sa.Connection,
    query: SearchQuery,
    source: sa.FromClause,
    columns: Sequence[sa.ColumnElement[Any]],
    keys: Sequence[sa.Column[Any]],
    arn_prefix: str,
) -> tuple[Sequence[Any], str | None, int]:
    """The rows of one page, in order, the token of the next one, and how many rows all pages have."""
    conditions = _Conditions(connection, query.resource, arn_prefix)
    where = [groups.c.live == 1, conditions.of(query.where), *(conditions.visible(key, value) for key, value in query.visible)]
    counted, among = source, where
    if query.resource is SearchResource.FEATURE_METADATA and not query.visible and not _names_group(query.where):
        counted, among = features, where[1:]  # features of groups that are gone are gone, too
    total = connection.execute(sa.select(sa.func.count()).select_from(counted).where(*among)).scalar_one()
    sort = conditions.sort(query.sort)
    statement = sa.select(*columns, sort.label("sort")).select_from(source).where(*where)
    order = [sort, *keys]
    if query.page_token is not None:
        last = sa.tuple_(*_read_token(query, len(keys)))
        place = sa.tuple_(*order)
        statement = statement.where(place < last if query.descending else place > last)
    statement = statement.order_by(*(part.desc() if query.descending else part.asc() for part in order))
    rows = connection.execute(statement.limit(query.page_rows + 1)).all()
    page = rows[: query.page_rows]
    token = None
    if len(rows) > query.page_rows:
        last_row = page[-1]._mapping
        token = _token(query, [last_row["sort"], *(last_row[key] for key in keys)])
    return page, token, int(total)


@dataclass(frozen=True, slots=True)
class _Conditions:
    """Requirements on the resource of the enclosing statement, as SQL that is true or not true."""

    connection: sa.Connection
    resource: SearchResource
    arn_prefix: str

    def of(self, requirement: Requirement) -> _Test:
        if isinstance(requirement, Junction):
            if not requirement.parts:
                return sa.true()
            parts = [self.of(part) for part in requirement.parts]
            return sa.or_(*parts) if requirement.any else sa.and_(*parts)
        if isinstance(requirement, OneElement):
            if requirement.name == "FeatureDefinitions":
                tests = [self._on(_DEFINITION_COLUMNS[one.property.name], one) for one in requirement.conditions]
                return self._some_definition(*tests)
            table = self._pairs()
            columns = {f"{requirement.name}.Key": table.c.key, f"{requirement.name}.Value": table.c.value}
            return self._some_pair(*(self._on(columns[one.property.name], one) for one in requirement.conditions))
        return self._condition(requirement)

    def visible(self, key: str, value: str) -> _Test:
        """The group has no tag of that key, or one of that value."""
        other = sa.exists().where(
            group_tags.c.group_id == groups.c.group_id, group_tags.c.key == key, group_tags.c.value != value
        )
        return sa.not_(other)

    def sort(self, found: Property) -> sa.ColumnElement[Any]:
        """What to order by; whatever is missing comes before all that is there."""
        if found.scope is Scope.PAIR:
            table = self._pairs()
            value = sa.select(table.c.value).where(*self._own_pairs(), table.c.key == found.key).scalar_subquery()
            return by_code_point(self.connection, sa.func.coalesce(value, ""))
        column = self._column(found)
        if found.kind is Kind.TIME:  # everything has been created and modified; plain columns can be read in order
            return column
        if found.kind is not Kind.TEXT:
            return sa.func.coalesce(column, sa.literal(_LEAST, sa.BigInteger))
        return by_code_point(self.connection, sa.func.coalesce(column, ""))

    def _condition(self, condition: Condition) -> _Test:
        found = condition.property
        if found.scope is Scope.RESOURCE:
            if found.kind is not Kind.STRUCTURE:
                return self._on(self._column(found), condition)
            members = [column for name, column in group_search.c.items() if name.startswith(f"{found.name}.")]
            positive = sa.or_(*(column.is_not(None) for column in members))
        elif found.scope is Scope.DEFINITIONS:
            positive = sa.true()
            if found.kind is not Kind.STRUCTURE:
                positive = self._some_definition(_positive(self.connection, _DEFINITION_COLUMNS[found.name], condition))
        elif found.scope is Scope.PAIR:
            table = self._pairs()
            positive = self._some_pair(table.c.key == found.key, _positive(self.connection, table.c.value, condition))
        else:
            table = self._pairs()
            tests = [_positive(self.connection, column, condition) for column in (table.c.key, table.c.value)]
            positive = self._some_pair(sa.or_(*tests))
        return sa.not_(positive) if _is_negative(condition) else positive

    def _on(self, column: sa.ColumnElement[Any], condition: Condition) -> _Test:
        """A condition on the one value of a column."""
        if counts_as_false(condition.property) and condition.operand is not None:
            column = sa.func.coalesce(column, 0)
        positive = sa.and_(column.is_not(None), _positive(self.connection, column, condition))
        return sa.not_(positive) if _is_negative(condition) else positive

    def _column(self, found: Property) -> sa.ColumnElement[Any]:
        if self.resource is SearchResource.FEATURE_GROUP:
            return group_search.c[found.name]
        columns: dict[str, sa.ColumnElement[Any]] = {
            "FeatureName": features.c.name,
            "FeatureType": features.c.type,
            "Description": features.c.description,
            "CreationTime": features.c.created_at_us,
            "LastModifiedTime": features.c.modified_at_us,
            "FeatureGroupName": groups.c.name,
            "FeatureGroupArn": sa.literal(self.arn_prefix, sa.Text) + groups.c.name,
        }
        return columns[found.name]

    @staticmethod
    def _some_definition(*tests: _Test) -> _Test:
        return sa.exists().where(features.c.group_id == groups.c.group_id, *tests)

    def _some_pair(self, *tests: _Test) -> _Test:
        return sa.exists().where(*self._own_pairs(), *tests)

    def _pairs(self) -> sa.Table:
        return group_tags if self.resource is SearchResource.FEATURE_GROUP else feature_parameters

    def _own_pairs(self) -> list[_Test]:
        if self.resource is SearchResource.FEATURE_GROUP:
            return [group_tags.c.group_id == groups.c.group_id]
        table = feature_parameters
        return [table.c.group_id == features.c.group_id, table.c.feature == features.c.name]


def _names_group(requirement: Requirement) -> bool:
    """Whether a requirement on features asks for something of their group."""
    if isinstance(requirement, Junction):
        return any(map(_names_group, requirement.parts))
    return isinstance(requirement, Condition) and requirement.property.name in ("FeatureGroupName", "FeatureGroupArn")


def _is_negative(condition: Condition) -> bool:
    return condition.operator in (Operator.NOT_EQUALS, Operator.NOT_EXISTS)


def _positive(connection: sa.Connection, column: sa.ColumnElement[Any], condition: Condition) -> _Test:
    """Whether a value meets a condition, of which the negative operators count as their opposites."""
    operator, operand = condition.operator, condition.operand
    if operand is None:
        return column.is_not(None)
    if isinstance(operand, tuple):
        return column.in_(operand)
    if isinstance(operand, str):
        return contains(connection, column, operand) if operator is Operator.CONTAINS else column == operand
    if operator is Operator.GREATER_THAN:
        return column >= operand.end
    if operator is Operator.GREATER_THAN_OR_EQUAL_TO:
        return column >= operand.start
    if operator is Operator.LESS_THAN:
        return column < operand.start
    if operator is Operator.LESS_THAN_OR_EQUAL_TO:
        return column < operand.end
    return _within(column, operand)


def _within(column: sa.ColumnElement[Any], span: Span) -> _Test:
    return sa.and_(column >= span.start, column < span.end)


def _digest(query: SearchQuery) -> str:
    """Tells whether a token belongs to a query; pages may differ in size."""
    what = repr((query.resource, query.where, query.sort, query.descending, query.visible))
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _token(query: SearchQuery, place: list[str | int]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([_digest(query), *place])).decode()


def _read_token(query: SearchQuery, keys: int) -> list[str | int]:
    """Where the page before ended. Raises ValidationFailed."""
    assert query.page_token is not None, "asked of queries that have one"
    try:
        digest, sort, *place = decode_json(base64.urlsafe_b64decode(query.page_token), list[str | _Int64])
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValidationFailed.one("NextToken", "a token of an earlier answer", query.page_token) from error
    numbers = [part for part in place if isinstance(part, int)]
    ours = len(numbers) == len(place) == keys and isinstance(sort, str) == (query.sort.kind is Kind.TEXT)
    if digest != _digest(query) or not ours:
        raise ValidationFailed.one("NextToken", "a token of an earlier answer to the same search", query.page_token)
    return [sort, *numbers]
