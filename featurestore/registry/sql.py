"""The registry on SQLite or PostgreSQL, through SQLAlchemy.

A group is one row: the columns that lists filter and sort by, and the whole group as a JSON document. `live` is 1 while the
name is taken and NULL afterwards, so the unique index on (folded name, live) lets exactly one concurrent creation win and
keeps deleted groups findable by key. Names that differ only by case are one name here, since SQL and some file systems
could not tell them apart.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import sqlalchemy as sa

from featurestore.decoding import decode_json
from featurestore.errors import (
    FeatureGroupInUse,
    FeatureGroupNotFound,
    FeatureStoreError,
    LimitExceeded,
    SettingsInvalid,
    StoreCorrupt,
    StoreUnavailable,
    StreamInUse,
    StreamNotFound,
    ValidationFailed,
)
from featurestore.model import limits
from featurestore.model.feature_group import (
    DataCatalog,
    FeatureGroup,
    GroupStatus,
    OfflineConfig,
)
from featurestore.model.stream import Stream
from featurestore.registry import search
from featurestore.registry.protocol import (
    FeatureHits,
    FeatureMetadata,
    GroupHits,
    GroupPage,
    GroupQuery,
    GroupSort,
    SearchQuery,
    StoreIdentity,
    WantedIdentity,
)
from featurestore.registry.tables import features as _features
from featurestore.registry.tables import group_search
from featurestore.registry.tables import groups as _groups
from featurestore.registry.tables import metadata as _metadata

FORMAT_VERSION: Final = "3"
BUSY_TIMEOUT_S: Final = 30.0

_store: Final = sa.Table(
    "store", _metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
_streams: Final = sa.Table(
    "stream", _metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("document", sa.LargeBinary, nullable=False)
)
lease_table: Final = sa.Table(
    "lease",
    _metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expires_at_us", sa.BigInteger, nullable=False),
)
"""See `registry.leases`: who works on which part."""
worker_table: Final = sa.Table(
    "worker",
    _metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("expires_at_us", sa.BigInteger, nullable=False),
)
"""See `registry.leases`: who asks for a share of the parts."""
execution_table: Final = sa.Table(
    "athena_execution",
    _metadata,
    sa.Column("execution_id", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("submitted_at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("lease_expires_at_us", sa.BigInteger, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),
)
"""See `athena.executions`."""
external_table: Final = sa.Table(
    "athena_table",
    _metadata,
    sa.Column("database_name", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("document", sa.LargeBinary, nullable=False),
)
"""See `athena.tables`."""
access_key_table: Final = sa.Table(
    "access_key",
    _metadata,
    sa.Column("access_key_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("live", sa.SmallInteger),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("access_right", sa.Text, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_us", sa.BigInteger),
    sa.UniqueConstraint("name", "live"),
)
"""See `access.keys`. `live` is 1 while the key is good and NULL afterwards, as for groups."""
_SORT_COLUMN: Final = {
    GroupSort.NAME: _groups.c.name,
    GroupSort.STATUS: _groups.c.status,
    GroupSort.OFFLINE_STATUS: sa.func.coalesce(_groups.c.offline_status, ""),
    GroupSort.CREATION_TIME: _groups.c.created_at_us,
}


_BEING_DELETED: Final = (GroupStatus.DELETING.value, GroupStatus.DELETE_FAILED.value)
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What the database takes: a token of our own making never holds more, one made up might."""


def _now_us() -> int:
    return time.time_ns() // 1000


class SqlRegistry:
    """See `registry.protocol.Registry`. Opens its database at once, so that a wrong address is found at start.

    Raises:
        StoreUnavailable: the database can't be opened.
        SettingsInvalid: the store exists with another number of shards, account or region.
        StoreCorrupt: it has the format of another release.
    """

    def __init__(self, url: str, wanted: WantedIdentity, *, clock_us: Callable[[], int] = _now_us) -> None:
        self._clock_us = clock_us
        self._engine = _engine(url)
        try:
            with self._write() as connection:
                _metadata.create_all(connection)
                self._identity = _adopt_identity(connection, wanted)
        except (sa.exc.SQLAlchemyError, StoreUnavailable) as error:
            self._engine.dispose()
            detail = _driver_message(error) if isinstance(error, sa.exc.SQLAlchemyError) else str(error)
            raise StoreUnavailable("open registry", detail, hint="see FEATURESTORE_REGISTRY_URL") from error
        except FeatureStoreError:
            self._engine.dispose()
            raise

    def identity(self) -> StoreIdentity:
        return self._identity

    def version(self) -> int:
        with self._read() as connection:
            return int(_required(connection, "version"))

    def create(self, group: FeatureGroup) -> FeatureGroup:
        with self._write() as connection:
            created_at_us = self._creation_time_us(connection, group.name)
            group = replace(
                group,
                account_id=self._identity.account_id,
                region=self._identity.region,
                created_at_us=created_at_us,
                modified_at_us=created_at_us,
                feature_counts=(len(group.features),),
                status=GroupStatus.CREATED,
            )
            if group.offline is not None:
                group = replace(group, offline=_resolved(group, group.offline))
                group = self._with_table(connection, group)
            live = connection.execute(sa.select(sa.func.count()).where(_groups.c.live == 1)).scalar_one()
            if live >= limits.FEATURE_GROUPS_MAX:
                raise LimitExceeded("feature groups", limits.FEATURE_GROUPS_MAX)
            statement = _groups.insert().values(
                name=group.name,
                folded=group.name.lower(),
                live=1,
                status=group.status.value,
                offline_status=group.offline_status,
                created_at_us=created_at_us,
                document=msgspec.json.encode(group),
            )
            try:
                with connection.begin_nested():
                    (group_id,) = connection.execute(statement).inserted_primary_key or (0,)
            except sa.exc.IntegrityError as error:
                holder = connection.execute(
                    sa.select(_groups.c.name).where(_groups.c.folded == group.name.lower(), _groups.c.live == 1)
                ).scalar_one_or_none()
                twin = holder is not None and holder != group.name
                detail = f"differs from the existing {holder!r} only by case" if twin else "exists already"
                raise FeatureGroupInUse(group.name, detail) from error
            group = replace(group, group_id=int(group_id))
            self._store_group(connection, group)
            self._add_features(connection, group, 0, created_at_us)
            self._bump(connection)
        return group

    @staticmethod
    def _with_table(connection: sa.Connection, group: FeatureGroup) -> FeatureGroup:
        """The group, or one whose creation failed because the catalog table that it wants is there already."""
        assert group.offline is not None, "asked of groups with an offline store"
        catalog = group.offline.data_catalog
        if catalog is None or group.offline.disable_glue_table_creation:
            return group
        owner = connection.execute(
            sa.select(_groups.c.name)
            .join(group_search, group_search.c.group_id == _groups.c.group_id)
            .where(
                _groups.c.live == 1,
                _groups.c.status != GroupStatus.CREATE_FAILED.value,
                group_search.c["OfflineStoreConfig.DataCatalogConfig.Database"] == catalog.database,
                group_search.c["OfflineStoreConfig.DataCatalogConfig.TableName"] == catalog.table_name,
                group_search.c["OfflineStoreConfig.DisableGlueTableCreation"] == 0,
            )
        ).first()
        if owner is None:
            return group
        reason = f"table {catalog.database}.{catalog.table_name} exists already, of feature group {owner.name!r}"
        return replace(group, status=GroupStatus.CREATE_FAILED, failure_reason=reason)

    def get(self, name: str) -> FeatureGroup:
        with self._read() as connection:
            return self._live(connection, name)

    def get_by_id(self, group_id: int) -> FeatureGroup:
        with self._read() as connection:
            row = connection.execute(sa.select(_groups.c.document).where(_groups.c.group_id == group_id)).one_or_none()
        if row is None:
            raise FeatureGroupNotFound(f"#{group_id}")
        return _decode(row.document)

    def list(self, query: GroupQuery) -> GroupPage:
        with self._read() as connection:
            return self._list(connection, query)

    @staticmethod
    def _list(connection: sa.Connection, query: GroupQuery) -> GroupPage:
        column = _SORT_COLUMN[query.sort]
        if query.sort is not GroupSort.CREATION_TIME:
            column = search.by_code_point(connection, column)
        statement = sa.select(_groups.c.document, _groups.c.group_id, column.label("sort")).where(_groups.c.live == 1)
        if query.name_contains is not None:
            statement = statement.where(search.contains(connection, _groups.c.name, query.name_contains))
        if query.status is not None:
            statement = statement.where(_groups.c.status == query.status.value)
        if query.offline_status is not None:
            statement = statement.where(_groups.c.offline_status == query.offline_status.value)
        if query.created_after_us is not None:
            statement = statement.where(_groups.c.created_at_us > query.created_after_us)
        if query.created_before_us is not None:
            statement = statement.where(_groups.c.created_at_us < query.created_before_us)
        keys = sa.tuple_(column, _groups.c.group_id)
        if query.page_token is not None:
            last = sa.tuple_(*_read_token(query.page_token, query.sort))
            statement = statement.where(keys < last if query.descending else keys > last)
        order = [column, _groups.c.group_id]
        statement = statement.order_by(*(part.desc() if query.descending else part.asc() for part in order))
        rows = connection.execute(statement.limit(query.page_rows + 1)).all()
        page = rows[: query.page_rows]
        token = _token(query.sort, page[-1].sort, page[-1].group_id) if len(rows) > query.page_rows else None
        return GroupPage([_decode(row.document) for row in page], token)

    def search_groups(self, query: SearchQuery) -> GroupHits:
        with self._read() as connection:
            return search.find_groups(connection, query)

    def search_features(self, query: SearchQuery) -> FeatureHits:
        arn_prefix = FeatureGroup("", "", "", (), account_id=self._identity.account_id, region=self._identity.region).arn
        with self._read() as connection:
            return search.find_features(connection, query, arn_prefix)

    def update(self, name: str, change: Callable[[FeatureGroup], FeatureGroup]) -> FeatureGroup:
        with self._write() as connection:
            before = self._live(connection, name, lock=True)
            now_us = self._clock_us()
            after = replace(change(before), modified_at_us=max(now_us, before.created_at_us))
            self._add_features(connection, after, len(before.features), now_us)
            self._store_group(connection, after)
            self._bump(connection)
        return after

    def begin_delete(self, name: str) -> FeatureGroup:
        return self.update(name, lambda group: replace(group, status=GroupStatus.DELETING, failure_reason=None))

    def fail_delete(self, group_id: int, reason: str) -> None:
        with self._write() as connection:
            statement = sa.select(_groups.c.document).where(_groups.c.group_id == group_id, _groups.c.live == 1)
            row = connection.execute(statement.with_for_update()).one_or_none()
            if row is None or (group := _decode(row.document)).status is not GroupStatus.DELETING:
                return
            reason = reason[: limits.FAILURE_REASON_CHARS_MAX]
            self._store_group(connection, replace(group, status=GroupStatus.DELETE_FAILED, failure_reason=reason))
            self._bump(connection)

    def finish_delete(self, group_id: int) -> None:
        with self._write() as connection:
            done = connection.execute(
                _groups.update().where(_groups.c.group_id == group_id, _groups.c.status.in_(_BEING_DELETED)).values(live=None)
            )
            if done.rowcount:
                search.forget_group(connection, group_id)
            self._bump(connection)

    def deleting(self) -> Sequence[FeatureGroup]:
        statement = sa.select(_groups.c.document).where(_groups.c.live == 1, _groups.c.status.in_(_BEING_DELETED))
        with self._read() as connection:
            return [_decode(row.document) for row in connection.execute(statement)]

    def feature(self, name: str, feature_name: str) -> FeatureMetadata:
        with self._read() as connection:
            group = self._live(connection, name)
            return self._feature(connection, group, feature_name)

    def update_feature(
        self,
        name: str,
        feature_name: str,
        *,
        description: str | None,
        additions: dict[str, str],
        removals: Sequence[str],
    ) -> FeatureMetadata:
        with self._write() as connection:
            group = self._live(connection, name, lock=True)
            current = self._feature(connection, group, feature_name)
            kept = {key: value for key, value in current.parameters.items() if key not in removals}
            parameters = kept | additions
            if len(parameters) > limits.FEATURE_PARAMETERS_MAX:
                raise LimitExceeded(f"parameters of feature {feature_name!r}", limits.FEATURE_PARAMETERS_MAX)
            changed = replace(
                current,
                description=current.description if description is None else (description or None),
                parameters=parameters,
                modified_at_us=self._clock_us(),
            )
            connection.execute(
                _features.update()
                .where(_features.c.group_id == group.group_id, _features.c.name == feature_name)
                .values(
                    description=changed.description,
                    parameters=msgspec.json.encode(changed.parameters),
                    modified_at_us=changed.modified_at_us,
                )
            )
            search.store_parameters(connection, group.group_id, feature_name, changed.parameters)
            self._bump(connection)
        return changed

    def streams(self) -> Sequence[Stream]:
        with self._read() as connection:
            rows = connection.execute(sa.select(_streams.c.document).order_by(_streams.c.name)).all()
        return [_decode_stream(row.document) for row in rows]

    def add_stream(self, stream: Stream) -> None:
        with self._write() as connection:
            try:
                with connection.begin_nested():
                    connection.execute(_streams.insert().values(name=stream.name, document=msgspec.json.encode(stream)))
            except sa.exc.IntegrityError as error:
                raise StreamInUse(stream.name) from error

    def update_stream(self, name: str, change: Callable[[Stream], Stream]) -> Stream:
        with self._write() as connection:
            after = change(self._stream(connection, name))
            document = msgspec.json.encode(after)
            connection.execute(_streams.update().where(_streams.c.name == name).values(document=document))
        return after

    def remove_stream(self, name: str) -> Stream:
        with self._write() as connection:
            stream = self._stream(connection, name)
            connection.execute(_streams.delete().where(_streams.c.name == name))
        return stream

    def close(self) -> None:
        self._engine.dispose()

    def transaction(self) -> AbstractContextManager[sa.Connection]:
        """A writing transaction on the registry's database, for what else lives there. Raises StoreUnavailable."""
        return self._write()

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that only reads the registry's database. Raises StoreUnavailable."""
        return self._read()

    def close_to_others(self) -> None:
        """Let only its owner read the database, if that is a file: it is about to hold secrets.

        Raises:
            StoreUnavailable: the file is somebody else's.
        """
        if self._engine.url.get_backend_name() != "sqlite" or not self._engine.url.database:
            return
        for suffix in ("", "-wal", "-shm"):
            file = Path(self._engine.url.database + suffix)
            try:
                if file.exists():
                    file.chmod(0o600)
            except FileNotFoundError:
                continue  # the last connection to it was closed meanwhile
            except OSError as error:
                raise StoreUnavailable("close the registry to other users", str(error)) from error

    def _read(self) -> _Transaction:
        return _Transaction(self._engine, write=False)

    def _write(self) -> _Transaction:
        return _Transaction(self._engine, write=True)

    def _live(self, connection: sa.Connection, name: str, *, lock: bool = False) -> FeatureGroup:
        statement = sa.select(_groups.c.document).where(_groups.c.name == name, _groups.c.live == 1)
        row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
        if row is None:
            raise FeatureGroupNotFound(name)
        return _decode(row.document)

    @staticmethod
    def _stream(connection: sa.Connection, name: str) -> Stream:
        statement = sa.select(_streams.c.document).where(_streams.c.name == name).with_for_update()
        row = connection.execute(statement).one_or_none()
        if row is None:
            raise StreamNotFound(name)
        return _decode_stream(row.document)

    def _store_group(self, connection: sa.Connection, group: FeatureGroup) -> None:
        connection.execute(
            _groups.update()
            .where(_groups.c.group_id == group.group_id)
            .values(status=group.status.value, offline_status=group.offline_status, document=msgspec.json.encode(group))
        )
        search.store_group(connection, group)

    def _add_features(self, connection: sa.Connection, group: FeatureGroup, first: int, now_us: int) -> None:
        rows = [
            {
                "group_id": group.group_id,
                "name": feature.name,
                "created_at_us": now_us,
                "modified_at_us": now_us,
                "parameters": b"{}",
                **search.feature_columns(position, feature),
            }
            for position, feature in enumerate(group.features[first:], first)
        ]
        if rows:
            connection.execute(_features.insert(), rows)

    def _feature(self, connection: sa.Connection, group: FeatureGroup, feature_name: str) -> FeatureMetadata:
        statement = _features.select().where(_features.c.group_id == group.group_id, _features.c.name == feature_name)
        row = connection.execute(statement).one_or_none()
        definition = group.feature(feature_name)
        if row is None or definition is None:
            raise FeatureGroupNotFound(group.name, feature=feature_name)
        return FeatureMetadata(
            group.name,
            group.arn,
            feature_name,
            definition.type,
            row.created_at_us,
            row.modified_at_us,
            row.description,
            decode_json(row.parameters, dict[str, str]),
        )

    def _creation_time_us(self, connection: sa.Connection, name: str) -> int:
        """Now, or the first second that no group of that catalog name was created in: the second names its folder."""
        catalog_name = sa.func.replace(_groups.c.folded, "-", "_")
        statement = sa.select(sa.func.max(_groups.c.created_at_us)).where(catalog_name == _catalog_stem(name))
        latest_us = connection.execute(statement).scalar_one()
        now_us = self._clock_us()
        return now_us if latest_us is None else max(now_us, (latest_us // 1_000_000 + 1) * 1_000_000)

    @staticmethod
    def _bump(connection: sa.Connection) -> None:
        value = sa.cast(sa.cast(_store.c.value, sa.BigInteger) + 1, sa.Text)
        connection.execute(_store.update().where(_store.c.name == "version").values(value=value))


class _Transaction:
    """`with _Transaction(engine, write) as connection`: commits at the end, rolls back on an error.

    On SQLite a writing transaction takes the write lock at its start: taking it later, after a read, could only fail.
    Driver errors leave as StoreUnavailable.
    """

    def __init__(self, engine: sa.Engine, *, write: bool) -> None:
        self._engine = engine
        self._write = write

    def __enter__(self) -> sa.Connection:
        try:
            self._connection = self._engine.connect()
            self._connection.info["write"] = self._write
            self._transaction = self._connection.begin()
        except sa.exc.SQLAlchemyError as error:
            raise StoreUnavailable("registry", _driver_message(error)) from error
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._transaction.commit()
            else:
                self._transaction.rollback()
        except sa.exc.SQLAlchemyError as failure:
            raise StoreUnavailable("registry", _driver_message(failure)) from failure
        finally:
            self._connection.close()
        if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
            raise StoreUnavailable("registry", _driver_message(error)) from error


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        try:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable("open registry", str(error), hint="see FEATURESTORE_REGISTRY_URL") from error
    engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # so that `begin` below is the one that starts transactions
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.info.get("write") else "BEGIN")

    return engine


def _adopt_identity(connection: sa.Connection, wanted: WantedIdentity) -> StoreIdentity:
    given = {name: value for name, value in asdict(wanted).items() if value is not None}
    found = {row.name: row.value for row in connection.execute(_store.select())}
    if not found:
        identity = StoreIdentity(**given)
        values = {"format": FORMAT_VERSION, "version": "1"} | {name: str(value) for name, value in asdict(identity).items()}
        connection.execute(_store.insert(), [{"name": name, "value": value} for name, value in values.items()])
        return identity
    if found["format"] != FORMAT_VERSION:
        raise StoreCorrupt("registry", f"format {found['format']}, this release reads {FORMAT_VERSION}")
    identity = StoreIdentity(found["account_id"], found["region"], int(found["shards"]))
    for name, value in given.items():
        if getattr(identity, name) != value:
            expected = f"{getattr(identity, name)}, which this store was created with"
            raise SettingsInvalid.one(f"FEATURESTORE_{name.upper()}", expected, value)
    return identity


def _decode_stream(document: bytes) -> Stream:
    try:
        return decode_json(document, Stream)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt("registry", f"stream: {error}") from error


def _resolved(group: FeatureGroup, offline: OfflineConfig) -> OfflineConfig:
    """The offline configuration with the paths and catalog names that creation fixes."""
    stem = f"{offline.s3_uri.rstrip('/')}/{group.account_id}/sagemaker/{group.region}/offline-store"
    catalog = offline.data_catalog
    if catalog is None and not offline.disable_glue_table_creation:
        table = f"{_catalog_stem(group.name)}_{group.created_at_s}"
        catalog = DataCatalog(table, "AwsDataCatalog", "sagemaker_featurestore")
    return replace(offline, resolved_s3_uri=f"{stem}/{group.name}-{group.created_at_s}/data", data_catalog=catalog)


def _catalog_stem(name: str) -> str:
    return name.lower().replace("-", "_")


def _required(connection: sa.Connection, name: str) -> str:
    return str(connection.execute(sa.select(_store.c.value).where(_store.c.name == name)).scalar_one())


def _decode(document: bytes) -> FeatureGroup:
    return decode_json(document, FeatureGroup)


def _token(sort: GroupSort, value: str | int, group_id: int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([sort, value, group_id])).decode()


def _read_token(token: str, sort: GroupSort) -> tuple[str | int, int]:
    try:
        written_sort, value, group_id = decode_json(base64.urlsafe_b64decode(token), tuple[GroupSort, str | _Int64, _Int64])
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValidationFailed.one("NextToken", "a token of an earlier answer", token) from error
    if written_sort is not sort or isinstance(value, int) != (sort is GroupSort.CREATION_TIME):
        raise ValidationFailed.one("NextToken", f"a token of an answer sorted by {sort}", token)
    return value, group_id


def _driver_message(error: sa.exc.SQLAlchemyError) -> str:
    """The driver's own words: SQLAlchemy's text carries the statement and its parameters, which may be private."""
    original = getattr(error, "orig", None)
    return str(original if original is not None else error)
