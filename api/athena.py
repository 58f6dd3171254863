"""Amazon Athena's operations on query executions and tables (JSON 1.1, version 2017-05-18).

One POST with the operation in `X-Amz-Target`; times are seconds since 1970 with a fraction. Everything here blocks on the
registry or a bucket and runs in a worker thread; queries run in threads of their own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from api.wire import JSON_11, Answer, UnknownOperation, decode, json_11_error, message_of, status_of
from featurestore.athena.catalog import DATABASE, GroupTable
from featurestore.athena.executions import Execution, ExecutionNotFound
from featurestore.athena.results import ResultColumn, token_of
from featurestore.athena.service import RESULT_LINE
from featurestore.athena.tables import ExternalTable
from featurestore.athena.translate import QueryInvalid, TableRef
from featurestore.decoding import decode_json
from featurestore.errors import FeatureStoreError, LimitExceeded, ValidationFailed
from featurestore.store import FeatureStore

END_AWAITED_S: Final = 3.0
TARGET_PREFIX: Final = "AmazonAthena."
SIGNING_NAME: Final = "athena"
CATALOG: Final = "AwsDataCatalog"
WORKGROUP: Final = "primary"
LIST_EXECUTIONS_MAX: Final = 50
LIST_TABLES_MAX: Final = 50
ENGINE: Final = {"SelectedEngineVersion": "AUTO", "EffectiveEngineVersion": "Athena engine version 3"}

_T = TypeVar("_T")
_Id = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,128}$")]
_Token = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_WorkGroup = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9._-]{1,128}$")]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]{1,255}$")]


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A request or a part of one; unknown members are ignored, as those of newer clients."""


class QueryExecutionContext(_Shape, frozen=True):
    Database: _Name = DATABASE
    Catalog: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] = CATALOG


class EncryptionConfiguration(_Shape, frozen=True):
    EncryptionOption: Literal["SSE_S3", "SSE_KMS", "CSE_KMS"]
    KmsKey: str | None = None


class ResultConfiguration(_Shape, frozen=True):
    OutputLocation: str | None = None
    EncryptionConfiguration: EncryptionConfiguration | None = None


class StartQueryExecution(_Shape, frozen=True):
    QueryString: str
    ClientRequestToken: Annotated[str, msgspec.Meta(pattern=r"^[^\x00]{32,128}$")] | None = None
    QueryExecutionContext: QueryExecutionContext | None = None
    ResultConfiguration: ResultConfiguration | None = None
    WorkGroup: _WorkGroup = WORKGROUP
    ExecutionParameters: list[str] | None = None


class ExecutionRequest(_Shape, frozen=True):
    """GetQueryExecution and StopQueryExecution."""

    QueryExecutionId: _Id


class BatchGetQueryExecution(_Shape, frozen=True):
    QueryExecutionIds: Annotated[list[_Id], msgspec.Meta(min_length=1, max_length=50)]


class GetQueryResults(_Shape, frozen=True):
    QueryExecutionId: _Id
    NextToken: _Token | None = None
    MaxResults: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    QueryResultType: Literal["DATA_ROWS"] = "DATA_ROWS"


class ListQueryExecutions(_Shape, frozen=True):
    NextToken: _Token | None = None
    MaxResults: Annotated[int, msgspec.Meta(ge=0, le=LIST_EXECUTIONS_MAX)] = LIST_EXECUTIONS_MAX
    WorkGroup: _WorkGroup = WORKGROUP


class GetWorkGroup(_Shape, frozen=True):
    WorkGroup: _WorkGroup


class ListDatabases(_Shape, frozen=True):
    CatalogName: str
    NextToken: _Token | None = None
    MaxResults: Annotated[int, msgspec.Meta(ge=1, le=LIST_TABLES_MAX)] = LIST_TABLES_MAX


class GetDatabase(_Shape, frozen=True):
    CatalogName: str
    DatabaseName: _Name


class ListTableMetadata(_Shape, frozen=True):
    CatalogName: str
    DatabaseName: _Name
    Expression: Annotated[str, msgspec.Meta(max_length=256)] = ""
    NextToken: _Token | None = None
    MaxResults: Annotated[int, msgspec.Meta(ge=1, le=LIST_TABLES_MAX)] = LIST_TABLES_MAX


class GetTableMetadata(_Shape, frozen=True):
    CatalogName: str
    DatabaseName: _Name
    TableName: _Name


class Athena:
    """The operations over one store, by name."""

    def __init__(self, store: FeatureStore) -> None:
        self._queries = store.athena
        self._operations: dict[str, Callable[[bytes], object]] = {
            "StartQueryExecution": self._typed(StartQueryExecution, self.start_query_execution),
            "GetQueryExecution": self._typed(ExecutionRequest, self.get_query_execution),
            "BatchGetQueryExecution": self._typed(BatchGetQueryExecution, self.batch_get_query_execution),
            "GetQueryResults": self._typed(GetQueryResults, self.get_query_results),
            "StopQueryExecution": self._typed(ExecutionRequest, self.stop_query_execution),
            "ListQueryExecutions": self._typed(ListQueryExecutions, self.list_query_executions),
            "GetWorkGroup": self._typed(GetWorkGroup, self.get_work_group),
            "ListDatabases": self._typed(ListDatabases, self.list_databases),
            "GetDatabase": self._typed(GetDatabase, self.get_database),
            "ListTableMetadata": self._typed(ListTableMetadata, self.list_table_metadata),
            "GetTableMetadata": self._typed(GetTableMetadata, self.get_table_metadata),
        }

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations, as clients put them behind TARGET_PREFIX."""
        return tuple(self._operations)

    def call(self, target: str, body: bytes) -> Answer:
        """Carry out one request; what the client did wrong is answered in the protocol's error form.

        Raises: our own failures, for the caller to log under the request's id.
        """
        operation = self._operations.get(target.removeprefix(TARGET_PREFIX))
        if operation is None or not target.startswith(TARGET_PREFIX):
            return json_11_error(UnknownOperation(f"operation {target!r} is not supported by this version"))
        try:
            return Answer(200, msgspec.json.encode(operation(body)), JSON_11)
        except QueryInvalid as error:
            return _error(400, "MetadataException", str(error))
        except LimitExceeded as error:
            return _error(400, "TooManyRequestsException", str(error), Reason="CONCURRENT_QUERY_LIMIT_EXCEEDED")
        except (ValidationFailed, ExecutionNotFound) as error:
            return _error(400, "InvalidRequestException", str(error), AthenaErrorCode="INVALID_INPUT")
        except FeatureStoreError as error:
            if error.code == "InternalFailure":
                raise
            return _error(status_of(error), "InternalServerException", message_of(error))

    @staticmethod
    def _typed(kind: type[_T], operation: Callable[[_T], object]) -> Callable[[bytes], object]:
        return lambda body: operation(decode(body or b"{}", kind))

    def start_query_execution(self, request: StartQueryExecution) -> object:
        context = request.QueryExecutionContext or QueryExecutionContext()
        result = request.ResultConfiguration or ResultConfiguration()
        encryption = result.EncryptionConfiguration
        execution = self._queries.start(
            request.QueryString,
            database=context.Database,
            catalog=context.Catalog,
            output_location=result.OutputLocation or None,
            workgroup=request.WorkGroup,
            parameters=request.ExecutionParameters or (),
            encryption=None if encryption is None else _given(encryption),
            token=request.ClientRequestToken,
        )
        return {"QueryExecutionId": execution.execution_id}

    def get_query_execution(self, request: ExecutionRequest) -> object:
        """Waits a while for the end: after an answer without it, clients sleep for five seconds before they ask again."""
        return {"QueryExecution": _execution(self._queries.get(request.QueryExecutionId, wait_s=END_AWAITED_S))}

    def batch_get_query_execution(self, request: BatchGetQueryExecution) -> object:
        found, missing = [], []
        for execution_id in request.QueryExecutionIds:
            try:
                found.append(_execution(self._queries.get(execution_id)))
            except ExecutionNotFound as error:
                missing.append({"QueryExecutionId": execution_id, "ErrorCode": "INVALID_INPUT", "ErrorMessage": str(error)})
        return {"QueryExecutions": found, "UnprocessedQueryExecutionIds": missing}

    def get_query_results(self, request: GetQueryResults) -> object:
        found = self._queries.results(request.QueryExecutionId, token=request.NextToken, rows_max=request.MaxResults)
        columns = found.execution.columns or (RESULT_LINE,)
        rows = [{"Data": [{} if value is None else {"VarCharValue": value} for value in row]} for row in found.page.rows]
        answer: dict[str, Any] = {
            "UpdateCount": 0,
            "ResultSet": {"Rows": rows, "ResultSetMetadata": {"ColumnInfo": [_column_info(column) for column in columns]}},
        }
        if found.page.offset_next is not None:
            answer["NextToken"] = token_of(request.QueryExecutionId, found.page.offset_next)
        return answer

    def stop_query_execution(self, request: ExecutionRequest) -> object:
        self._queries.stop(request.QueryExecutionId)
        return {}

    def list_query_executions(self, request: ListQueryExecutions) -> object:
        after = None if request.NextToken is None else _read_token(request.NextToken, tuple[int, str])
        limit = request.MaxResults or LIST_EXECUTIONS_MAX
        found = self._queries.executions.page(request.WorkGroup, after=after, limit=limit + 1)
        answer: dict[str, Any] = {"QueryExecutionIds": [execution.execution_id for execution in found[:limit]]}
        if len(found) > limit:
            answer["NextToken"] = _token((found[limit - 1].submitted_at_us, found[limit - 1].execution_id))
        return answer

    def get_work_group(self, request: GetWorkGroup) -> object:
        """Workgroups are labels here: each exists, and is set up as any other."""
        configuration = {
            "ResultConfiguration": {"OutputLocation": f"{self._queries.default_output}/"},
            "EnforceWorkGroupConfiguration": False,
            "PublishCloudWatchMetricsEnabled": False,
            "RequesterPaysEnabled": False,
            "EngineVersion": ENGINE,
        }
        return {"WorkGroup": {"Name": request.WorkGroup, "State": "ENABLED", "Configuration": configuration}}

    def list_databases(self, request: ListDatabases) -> object:
        _require_catalog(request.CatalogName)
        names, token = _part(self._queries.catalog.databases(), request.NextToken, request.MaxResults)
        return {"DatabaseList": [{"Name": name} for name in names]} | token

    def get_database(self, request: GetDatabase) -> object:
        _require_catalog(request.CatalogName)
        return {"Database": {"Name": self._queries.catalog.require_database(request.DatabaseName)}}

    def list_table_metadata(self, request: ListTableMetadata) -> object:
        _require_catalog(request.CatalogName)
        names = self._queries.catalog.names(request.DatabaseName)
        if not re.fullmatch(r"[\w.*|]*", request.Expression):
            raise ValidationFailed.one("Expression", "letters, digits, '_', '.', '*' and '|'", request.Expression)
        # As patterns of file names, which can't be made to take for ever.
        patterns = [part.replace(".*", "*").replace(".", "?") for part in request.Expression.lower().split("|")]
        matching = [name for name in names if not request.Expression or any(fnmatchcase(name, part) for part in patterns)]
        page, token = _part(matching, request.NextToken, request.MaxResults)
        return {"TableMetadataList": [self._table(request.DatabaseName, name) for name in page]} | token

    def get_table_metadata(self, request: GetTableMetadata) -> object:
        _require_catalog(request.CatalogName)
        return {"TableMetadata": self._table(request.DatabaseName, request.TableName)}

    def _table(self, database: str, name: str) -> dict[str, Any]:
        table = self._queries.catalog.table(TableRef(database.lower(), name.lower()))
        created_at_us = table.created_at_us if isinstance(table, ExternalTable) else table.group.created_at_us
        return {
            "Name": name.lower(),
            "CreateTime": _seconds(created_at_us),
            "TableType": "EXTERNAL_TABLE",
            "Columns": _columns(table.columns),
            "PartitionKeys": _columns(table.partitions) if isinstance(table, GroupTable) else [],
            "Parameters": {"EXTERNAL": "TRUE"},
        }


def _error(status: int, code: str, message: str, **members: str) -> Answer:
    return Answer(status, msgspec.json.encode({"__type": code, "Message": message[:2048]} | members), JSON_11)


def _execution(execution: Execution) -> dict[str, Any]:
    request = execution.request
    status: dict[str, Any] = {"State": execution.state.value, "SubmissionDateTime": _seconds(execution.submitted_at_us)}
    result: dict[str, Any] = {"OutputLocation": execution.output_location}
    if request.encryption is not None:
        result["EncryptionConfiguration"] = request.encryption
    if execution.failure is not None:
        failure = execution.failure
        status["StateChangeReason"] = failure.reason
        status["AthenaError"] = {
            "ErrorCategory": failure.category,
            "Retryable": failure.retryable,
            "ErrorMessage": failure.reason,
        }
    if execution.completed_at_us is not None:
        status["CompletionDateTime"] = _seconds(execution.completed_at_us)
    answer: dict[str, Any] = {
        "QueryExecutionId": execution.execution_id,
        "Query": request.query,
        "StatementType": execution.type.value,
        "ResultConfiguration": result,
        "QueryExecutionContext": {"Database": request.database, "Catalog": request.catalog},
        "Status": status,
        "Statistics": _statistics(execution),
        "WorkGroup": request.workgroup,
        "EngineVersion": ENGINE,
    }
    if request.parameters:
        answer["ExecutionParameters"] = list(request.parameters)
    return answer


def _statistics(execution: Execution) -> dict[str, int]:
    """What is known by now, in milliseconds and bytes."""
    statistics = {
        "EngineExecutionTimeInMillis": execution.engine_us // 1000,
        "DataScannedInBytes": execution.scanned_bytes,
        "QueryPlanningTimeInMillis": execution.planning_us // 1000,
    }
    if execution.started_at_us is not None:
        statistics["QueryQueueTimeInMillis"] = (execution.started_at_us - execution.submitted_at_us) // 1000
    if execution.completed_at_us is not None:
        statistics["TotalExecutionTimeInMillis"] = (execution.completed_at_us - execution.submitted_at_us) // 1000
        if execution.started_at_us is not None:
            running_us = execution.completed_at_us - execution.started_at_us
            statistics["ServiceProcessingTimeInMillis"] = max(0, running_us - execution.planning_us - execution.engine_us) // 1000
    return statistics


def _column_info(column: ResultColumn) -> dict[str, Any]:
    return {
        "CatalogName": "hive",
        "SchemaName": "",
        "TableName": "",
        "Name": column.name,
        "Label": column.name,
        "Type": column.type,
        "Precision": column.precision,
        "Scale": column.scale,
        "Nullable": "UNKNOWN",
        "CaseSensitive": column.type in ("varchar", "char", "string"),
    }


def _columns(columns: Sequence[Any]) -> list[dict[str, str]]:
    return [{"Name": column.name, "Type": column.type} for column in columns]


def _given(shape: EncryptionConfiguration) -> dict[str, str]:
    return {name: value for name, value in msgspec.to_builtins(shape).items() if value is not None}


def _require_catalog(name: str) -> None:
    if name.lower() != CATALOG.lower():
        raise QueryInvalid("CATALOG_NOT_FOUND", f"Catalog {name!r} does not exist; the one there is is {CATALOG}")


def _part(names: list[str], token: str | None, limit: int) -> tuple[list[str], dict[str, str]]:
    """The names behind that of a token, and the member with the next token if there are more."""
    after = "" if token is None else _read_token(token, tuple[str])[0]
    rest = [name for name in names if name > after]
    return rest[:limit], {"NextToken": _token((rest[limit - 1],))} if len(rest) > limit else {}


def _token(place: tuple[object, ...]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _read_token(token: str, kind: type[_T]) -> _T:
    try:
        return decode_json(base64.urlsafe_b64decode(token), kind)
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValidationFailed.one("NextToken", "a token of an earlier answer", token) from error


def _seconds(time_us: int) -> float:
    return time_us // 1000 / 1000
