"""The table of a group as an Iceberg table: the same Parquet files, entered in a catalog that other engines read.

    catalog                                    SQL database: table name to the URL of its newest metadata file
    <group's folder>/iceberg/<random>/metadata/  metadata files, manifest lists and manifests, written by pyiceberg
    <group's folder>/data/, opt/               the data files, where they are: none is written anew or copied

A publication makes the current snapshot hold exactly the live files of one manifest version. What it held before is read from its
own manifests, never from what a snapshot says of itself: others may have committed to the table, too.

The table is opened before the manifest is read. So the version that is about to be published is never older than the one the
table shows, and a publication that was planned before `forget` finds its table gone. A commit is refused when the table has
changed since it was opened; everything is then planned anew, so that of any number of publishers none adds a file twice.

The format: https://iceberg.apache.org/spec/ (version 2).
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError

from featurestore.errors import StoreUnavailable, ValidationFailed
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.opening import ENDPOINT
from featurestore.offline.s3 import REGION, amazon_endpoint
from featurestore.offline.table import OfflineStore

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata

CATALOG: Final = "featurestore"
"""Name of the catalog; a SQL catalog shows only the tables that were entered under the name it is opened with."""
NAMESPACE: Final = "sagemaker_featurestore"
VERSION_PROPERTY: Final = "featurestore.manifest-version"
"""Of a snapshot, for people: the manifest version whose files it held when it was made."""
ROOT_PROPERTY: Final = "featurestore.root"
"""Of a table: the folder of its group."""
PROPERTIES: Final = {
    "commit.retry.num-retries": "0",  # a commit that pyiceberg repeats would be the old plan on a new table
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "20",
    "gc.enabled": "false",  # engines that clean up or purge must leave the data files alone
}
MANIFESTS_MAX: Final = 40
"""From so many manifests on they are merged by a commit that would not do so by itself."""
ATTEMPTS_MAX: Final = 50
"""Lost races before a publication gives up: each lost race is another publisher's success."""
FOOTERS_AT_ONCE: Final = 8
PRODUCER_LOGGER: Final = "pyiceberg.table.update.snapshot"
CATALOG_OPENINGS_MAX: Final = 3
"""Of the two tables of a catalog, each may be created by another process between our look and our creating it."""
CATALOG_WAIT_S: Final = 60
"""How long a SQLite catalog is waited for while another process writes to it."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication did.

    Attributes:
        version: of the group's manifest; the current snapshot holds exactly its live files.
        snapshot_id: of the current snapshot; None while the table has never held a file.
        added, removed: files, by this call.
        table: name in the catalog, `<namespace>.<table>`.
        metadata_url: of the newest metadata file, for engines without a catalog. The next publication makes another one.
    """

    version: int
    snapshot_id: int | None
    added: int
    removed: int
    table: str
    metadata_url: str


class _DamagedError(Exception):
    """The metadata in the catalog can't be read, or holds what no publication enters."""


class IcebergPublisher:
    """Publishes the groups of one offline store. Any number may run at once, anywhere.

    Args:
        catalog_url: SQLAlchemy URL of the catalog; its tables are created when missing.
        keep_s: how long a snapshot stays after another one has replaced it, for queries that are reading it.
    """

    def __init__(self, catalog_url: str, offline: OfflineStore, *, keep_s: float) -> None:
        self._catalog_url = catalog_url
        self._offline = offline
        self._objects = offline.objects
        self._keep_ms = int(keep_s * 1000)

    def publish(self, group: FeatureGroup) -> Published:
        """Bring a group's Iceberg table to the newest version of its manifest, in one commit; create it if there is none.

        Idempotent: nothing is written when it is there already. Snapshots that were replaced longer than `keep_s` ago leave the
        table, and metadata files that nothing refers to are deleted.

        Raises:
            ValidationFailed: the folder's URL has characters that Iceberg readers do not agree on, or the name in the catalog
                belongs to another group.
            StoreUnavailable: the extra `iceberg` is not installed, or catalog or storage do not answer; repeating is safe.
        """
        operation = f"publish {group.name}"
        with self._opened(operation) as catalog:
            from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, TableAlreadyExistsError

            failure: Exception | None = None
            for _ in range(ATTEMPTS_MAX):
                try:
                    return self._publish(catalog, group)
                except (CommitFailedException, NoSuchTableError, TableAlreadyExistsError) as error:
                    failure = error
                except _DamagedError as error:
                    if isinstance(failure, _DamagedError):  # for the second time, so nobody was just about to repair it
                        with suppress(NoSuchTableError):
                            catalog.drop_table(table_name(group))
                    failure = error
                except (FileNotFoundError, ValueError) as error:
                    # What is replaced or expires while it is read or entered fails once.
                    if repr(error) == repr(failure):
                        raise _unavailable(operation, error) from error
                    failure = error
            raise StoreUnavailable(operation, f"lost {ATTEMPTS_MAX} races in a row") from failure

    def forget(self, group: FeatureGroup) -> None:
        """Drop a group's Iceberg table, and delete its metadata with all snapshots: manifests hold values, as column bounds.

        Call it once the files that must not be published any more have left the manifest. A publication that runs meanwhile
        fails and begins again; what it has written is deleted by itself or, if it is killed, by the next publication. Idempotent.

        Raises:
            StoreUnavailable
        """
        root = layout.group_root(group)
        # Listed before the table is dropped: what is written later may be of the next table.
        keys = self._objects.list(_folder(root))
        if not keys:
            return
        with self._opened(f"forget published {group.name}") as catalog:
            from pyiceberg.exceptions import NoSuchTableError

            try:
                ours = _loaded(catalog, group).properties.get(ROOT_PROPERTY) == root
            except NoSuchTableError:
                ours = False
            except _DamagedError:
                ours = True
            if ours:
                with suppress(NoSuchTableError):
                    catalog.drop_table(table_name(group))
        for key in keys:
            self._objects.delete(key)

    @contextmanager
    def _opened(self, operation: str) -> Iterator[SqlCatalog]:
        """The catalog, opened for one operation, so that credentials are never older than it."""
        try:
            import pyiceberg.catalog.sql  # noqa: F401
        except ImportError as error:
            raise StoreUnavailable(
                operation, f"packages are missing: {error}", hint="pip install featurestore[iceberg]"
            ) from error
        logging.getLogger(PRODUCER_LOGGER).addFilter(_is_news)
        url = self._catalog_url
        if url.startswith("sqlite:") and "?" not in url:
            url = f"{url}?timeout={CATALOG_WAIT_S}"
        properties = {"uri": url, "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"}
        if self._objects.url("").startswith("s3:"):
            properties |= _s3_properties(operation)
        try:
            catalog = _catalog(properties)
            with catalog:
                yield catalog
        except (OSError, SQLAlchemyError) as error:
            raise _unavailable(operation, error) from error

    def _publish(self, catalog: SqlCatalog, group: FeatureGroup) -> Published:
        """One attempt.

        Raises:
            CommitFailedException, NoSuchTableError, TableAlreadyExistsError: the table has changed since it was opened.
            _DamagedError
            FileNotFoundError: a file that is live, or of the table, is gone.
            ValueError: a snapshot that is to expire is gone.
        """
        from pyiceberg.table.update.snapshot import ExpireSnapshots

        root = layout.group_root(group)
        table = self._table(catalog, group)
        version = self._offline.manifest(group).current()
        if any(entry.schema_version > group.schema_version for entry in version.files):
            raise StoreUnavailable(f"publish {group.name}", "features were added meanwhile", hint="publish again")
        held, manifests = _held(table)
        live = {self._objects.url(f"{root}/{entry.path}"): entry.bytes for entry in version.files}
        removed = [held[url] for url in held.keys() - live.keys()]

        transaction = table.transaction()
        known = set(table.schema().column_names)
        fields = [field for field in schema.table_schema(group.features) if field.name not in known]
        if fields:
            with transaction.update_schema() as update_schema:
                update_schema.union_by_name(pa.schema(fields))
                for field in fields:
                    update_schema.move_before(field.name, schema.WRITE_TIME)
        metadata = transaction.table_metadata
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            fresh = [(url, size) for url, size in live.items() if url not in held]
            added = list(pool.map(lambda item: _data_file(table.io, metadata, *item), fresh))
        now_ms = time.time_ns() // 1_000_000
        expired = _expired(metadata, now_ms - self._keep_ms, now_ms, head_too=bool(added or removed))
        if added or removed or fields or expired:
            # What is there by now and is not the table's after the commit belongs to nobody whose own commit can succeed, if
            # the commit makes a snapshot: without one, snapshots that others have prepared still fit.
            keys = self._objects.list(_folder(root))
            update = transaction.update_snapshot(snapshot_properties={VERSION_PROPERTY: str(version.version)})
            if added or removed:
                with update.overwrite() if removed else update.merge_append() as snapshot:
                    for file in added:
                        snapshot.append_data_file(file)
                    for file in removed:
                        snapshot.delete_data_file(file)
            if removed and manifests >= MANIFESTS_MAX:
                with update.merge_append():
                    pass
            if expired:
                with ExpireSnapshots(transaction) as expire:
                    expire.by_ids(expired)
            transaction.commit_transaction()
            if added or removed:
                self._sweep(table, keys, now_ms - self._keep_ms)
        current = table.current_snapshot()
        return Published(
            version.version,
            None if current is None else current.snapshot_id,
            len(added),
            len(removed),
            ".".join(table_name(group)),
            table.metadata_location,
        )

    def _table(self, catalog: SqlCatalog, group: FeatureGroup) -> Table:
        """The table of a group, as it is in the catalog, or a new one.

        Raises: as `_publish`.
        """
        from pyiceberg.exceptions import NoSuchTableError
        from pyiceberg.table import TableProperties

        root = layout.group_root(group)
        url = self._objects.url(_folder(root))
        if set(url) & set("%?#"):
            raise ValidationFailed.one("URL of the offline store", "no '%', '?' and '#' for a group that is published", url)
        name = table_name(group)
        try:
            table = _loaded(catalog, group)
        except NoSuchTableError:
            with suppress(IntegrityError):  # another process was faster
                catalog.create_namespace_if_not_exists(name[:-1])
            location = f"{url}{uuid.uuid4().hex}"
            properties = PROPERTIES | {ROOT_PROPERTY: root}
            table = catalog.create_table(name, schema.table_schema(group.features), location, properties=properties)
        if table.properties.get(ROOT_PROPERTY) != root:
            raise ValidationFailed.one("DataCatalogConfig", "a table that nothing else is published as", ".".join(name))
        if not table.location().startswith(url):
            raise _DamagedError(f"{table.location()} is not below {url}")
        if table.spec().fields:
            raise _DamagedError("the table was partitioned")
        lacking = {key: value for key, value in PROPERTIES.items() if table.properties.get(key) != value}
        if table.name_mapping() is None:  # our files have no field ids, their columns are found by name
            lacking[TableProperties.DEFAULT_NAME_MAPPING] = table.schema().name_mapping.model_dump_json()
        if lacking:
            with table.transaction() as transaction:
                transaction.set_properties(lacking)
        return table

    def _sweep(self, table: Table, keys: Sequence[str], oldest_ms: int) -> None:
        """Delete those of the listed objects that the table does not refer to, nor did after `oldest_ms`."""
        metadata = table.metadata
        replaced_ms = [*(entry.timestamp_ms for entry in metadata.metadata_log[1:]), metadata.last_updated_ms]
        needed = {table.metadata_location}
        needed.update(
            entry.metadata_file for entry, end_ms in zip(metadata.metadata_log, replaced_ms, strict=True) if end_ms > oldest_ms
        )
        needed.update(file.statistics_path for file in (*metadata.statistics, *metadata.partition_statistics))
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            try:
                for manifests in pool.map(lambda snapshot: snapshot.manifests(table.io), metadata.snapshots):
                    needed.update(manifest.manifest_path for manifest in manifests)
            except FileNotFoundError:  # a later commit has let a snapshot expire, and its publisher sweeps
                return
        needed.update(snapshot.manifest_list for snapshot in metadata.snapshots)
        for key in keys:
            if self._objects.url(key) not in needed:
                self._objects.delete(key)


def table_name(group: FeatureGroup) -> tuple[str, str]:
    """Namespace and name of a group's table: the name in its data catalog, or what the group's name and creation time give."""
    assert group.offline is not None, "only groups with an offline store have a table"
    catalog = group.offline.data_catalog
    if catalog is not None and not group.offline.disable_glue_table_creation:
        return NAMESPACE, catalog.table_name
    return NAMESPACE, f"{group.name.lower().replace('-', '_')}_{group.created_at_s}"


def _folder(root: str) -> str:
    return f"{root}/iceberg/"


def _catalog(properties: dict[str, str]) -> SqlCatalog:
    """The catalog; its tables are created when missing.

    Raises:
        OSError, SQLAlchemyError
    """
    from pyiceberg.catalog.sql import SqlCatalog

    for _ in range(CATALOG_OPENINGS_MAX - 1):
        with suppress(DatabaseError):
            return SqlCatalog(CATALOG, **properties)
    return SqlCatalog(CATALOG, **properties)


def _loaded(catalog: SqlCatalog, group: FeatureGroup) -> Table:
    """The table under the group's name.

    Raises:
        NoSuchTableError, _DamagedError
    """
    from pyiceberg.exceptions import ValidationError

    try:
        return catalog.load_table(table_name(group))
    except (FileNotFoundError, ValueError, ValidationError) as error:
        raise _DamagedError(str(error)) from error


def _held(table: Table) -> tuple[dict[str, DataFile], int]:
    """The data files of the current snapshot by URL, and how many manifests list them.

    Raises:
        _DamagedError: they can't be read, or list what no publication enters: deletes, or a file twice.
    """
    from pyiceberg.manifest import ManifestContent

    snapshot = table.current_snapshot()
    if snapshot is None:
        return {}, 0
    held: dict[str, DataFile] = {}
    entries = 0
    try:
        manifests = snapshot.manifests(table.io)
        for manifest in manifests:
            if manifest.content is not ManifestContent.DATA:
                raise _DamagedError(f"{manifest.manifest_path} lists deletes")
            for entry in manifest.fetch_manifest_entry(table.io):
                held[entry.data_file.file_path] = entry.data_file
                entries += 1
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise _DamagedError(str(error)) from error
    if entries != len(held):
        raise _DamagedError("a file is listed twice")
    return held, len(manifests)


def _expired(metadata: TableMetadata, oldest_ms: int, now_ms: int, *, head_too: bool) -> list[int]:
    """The snapshots that were replaced at `oldest_ms` or before.

    Args:
        head_too: the current one is being replaced now.
    """
    snapshots = sorted(metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)
    if not snapshots:
        return []
    replaced_ms = [*(snapshot.timestamp_ms for snapshot in snapshots[1:]), now_ms]
    kept = {ref.snapshot_id for ref in metadata.refs.values()}
    if head_too and metadata.current_snapshot_id is not None:
        kept.discard(metadata.current_snapshot_id)
    return [
        snapshot.snapshot_id
        for snapshot, end_ms in zip(snapshots, replaced_ms, strict=True)
        if end_ms <= oldest_ms and snapshot.snapshot_id not in kept
    ]


def _data_file(io: FileIO, metadata: TableMetadata, url: str, size_bytes: int) -> DataFile:
    """A Parquet file as Iceberg describes it, from its footer.

    As `pyiceberg.io.pyarrow.parquet_file_to_data_file`, which takes the bounds of some row groups for those of all and fails at
    values that it can't encode: columns whose footer does not bound every value get no bounds.
    """
    from pyiceberg.io.pyarrow import (
        MetricModeTypes,
        MetricsMode,
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

    with io.new_input(url).open() as stream:
        footer = pq.read_metadata(stream)
    ids = parquet_path_to_id_mapping(metadata.schema())
    plan = compute_statistics_plan(metadata.schema(), metadata.properties)
    for number in range(footer.num_columns):
        if not _has_bounds(footer, number):
            column = ids[footer.schema.column(number).path]
            plan[column] = replace(plan[column], mode=MetricsMode(MetricModeTypes.COUNTS))
    statistics = data_file_statistics_from_parquet_metadata(footer, plan, ids)
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=url,
        file_format=FileFormat.PARQUET,
        partition=statistics.partition(metadata.spec(), metadata.schema()),
        file_size_in_bytes=size_bytes,
        sort_order_id=None,
        spec_id=metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def _has_bounds(footer: pq.FileMetaData, number: int) -> bool:
    """Whether the statistics of a column bound each of its values, and pyiceberg can encode the bounds."""
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(number)
        statistics = chunk.statistics
        if statistics is None:
            return False
        try:
            bounds = statistics.min, statistics.max
        except OverflowError:  # Python's dates end at the years 1 and 9999
            return False
        if bounds == (None, None):  # of nulls only; or values are too long, or some are NaN
            if statistics.null_count != chunk.num_values:
                return False
        elif any(_is_unusable(bound) for bound in bounds):
            return False
    return True


def _is_unusable(bound: object) -> bool:
    """NaN orders nothing; and no character follows U+D7FF, by which pyiceberg would round a long text up."""
    return (isinstance(bound, float) and math.isnan(bound)) or (isinstance(bound, str) and "\ud7ff" in bound)


def _s3_properties(operation: str) -> dict[str, str]:
    """How pyiceberg reaches the bucket: with endpoint, region and credentials as `S3ObjectStore` has them."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise StoreUnavailable(operation, f"s3:// needs packages: {error}", hint="pip install featurestore[s3]") from error
    try:
        session = boto3.Session()
        credentials = session.get_credentials()
        if credentials is None:
            raise StoreUnavailable(operation, "no AWS credentials were found")
        keys = credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise StoreUnavailable(operation, str(error)) from error
    region = session.region_name or REGION
    properties = {
        # Given in any case, since AWS_ENDPOINT_URL, which would be taken else, may name the feature store itself.
        "s3.endpoint": os.environ.get(ENDPOINT) or amazon_endpoint(region),
        "s3.region": region,
        "s3.access-key-id": keys.access_key,
        "s3.secret-access-key": keys.secret_key,
        "s3.session-token": keys.token,
    }
    return {key: value for key, value in properties.items() if value}


def _is_news(record: logging.LogRecord) -> bool:
    """A lost commit's manifests that can't be deleted, as the winner has swept them already, are none."""
    return record.exc_info is None or not isinstance(record.exc_info[1], FileNotFoundError)


def _unavailable(operation: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(operation, str(error), hint="see FEATURESTORE_ICEBERG_CATALOG_URL and FEATURESTORE_OFFLINE_URL")
