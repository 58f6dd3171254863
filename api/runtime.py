"""The Feature Store runtime API (`sagemaker-featurestore-runtime`, rest-json, version 2020-07-01) as plain ASGI.

No web framework stands in the way of a record: measured, it would cost most of the request (docs/decisions).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from api.batch_get import BatchGet, Entry, Form
from api.record_arrow import ARROW_STREAM, RecordArrow, accepts_arrow, record_columns
from api.record_json import RecordJson, batch_json, record_json
from api.wire import (
    Answer,
    Receive,
    Scope,
    Send,
    UnknownOperation,
    answered,
    decode,
    message_of,
    read_body,
    request_id,
    send_answer,
)
from featurestore.errors import Fault, FeatureGroupNotFound, FeatureStoreError, StoreUnavailable, ValidationFailed
from featurestore.model import limits
from featurestore.model.change import Applied
from featurestore.model.feature_group import TargetStore, TtlDuration, TtlUnit
from featurestore.model.record import FeaturePair, RecordPlan
from featurestore.online.delivery import resolve
from featurestore.online.protocol import Found
from featurestore.records import Records, WriteRequest

_log: Final = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 16 << 20
BATCH_BODY_BYTES_MAX: Final = 64 << 20
"""A batch of 25 records of the greatest size, each of its bytes written as `\\u0000`."""
RETRY_TOKEN_HEADER: Final = b"amz-sdk-invocation-id"
"""AWS SDKs send one id with all attempts of a call: a repeated attempt then changes nothing the second time."""
RETRY_TOKEN_CHARS_MAX: Final = 128

FEATURE_GROUP: Final = "FeatureGroup"
BATCH_GET_RECORD: Final = "BatchGetRecord"
BATCH_WRITE_RECORD: Final = "BatchWriteRecord"

DONE: Final = b""
ABSENT: Final = b"{}"

EXPIRATION_TIME_RESPONSES: Final = ("Enabled", "Disabled")
DELETION_MODES: Final = ("SoftDelete", "HardDelete")


class FeatureValue(msgspec.Struct, frozen=True, gc=False):
    FeatureName: str
    ValueAsString: str | None = None
    ValueAsStringList: list[str] | None = None


class Ttl(msgspec.Struct, frozen=True):
    Unit: TtlUnit
    Value: int

    def duration(self) -> TtlDuration:
        return TtlDuration(self.Unit, self.Value)


class PutRecordRequest(msgspec.Struct, frozen=True):
    Record: list[FeatureValue]
    TargetStores: list[TargetStore] | None = None
    TtlDuration: Ttl | None = None


class UpdateRecordRequest(msgspec.Struct, frozen=True):
    RecordIdentifierValueAsString: str
    Features: list[FeatureValue]
    TargetStores: list[TargetStore] | None = None
    TtlDuration: Ttl | None = None


class ListRecordsRequest(msgspec.Struct, frozen=True):
    MaxResults: int | None = None
    NextToken: str | None = None
    IncludeSoftDeletedRecords: bool | None = None


class BatchWriteEntry(msgspec.Struct, frozen=True):
    FeatureGroupName: str
    Record: list[FeatureValue]
    TargetStores: list[TargetStore] | None = None
    TtlDuration: Ttl | None = None


class BatchWriteRecordRequest(msgspec.Struct, frozen=True):
    """The entries stay the bytes they are: one that fails goes back as it came, member by member."""

    Entries: list[msgspec.Raw]
    TtlDuration: Ttl | None = None


class BatchGetIdentifier(msgspec.Struct, frozen=True):
    FeatureGroupName: str
    RecordIdentifiersValueAsString: list[str]
    FeatureNames: list[str] | None = None


class BatchGetRecordRequest(msgspec.Struct, frozen=True):
    Identifiers: list[BatchGetIdentifier]
    ExpirationTimeResponse: str | None = None


class Call(msgspec.Struct):
    """One request, taken apart.

    Attributes:
        segments: of the path, decoded.
        accept: the header, all its lines as one; empty without one.
    """

    method: str
    segments: list[str]
    query: dict[str, list[str]]
    body: bytes
    retry_token: str | None
    accept: bytes = b""

    def one(self, name: str) -> str:
        """A query parameter that must be there once."""
        value = self.optional(name)
        if value is None:
            raise ValidationFailed.one(name, "this required query parameter")
        return value

    def optional(self, name: str) -> str | None:
        values = self.query.get(name, [])
        if len(values) > 1:
            raise ValidationFailed.one(name, "this query parameter once", values[1])
        return values[0] if values else None


Result: TypeAlias = Answer | bytes
"""What a request is answered; bytes are the JSON of a success."""
Done: TypeAlias = Callable[[Result | Exception], None]
"""Is given the answer to a request, or the error to send."""

_Operation: TypeAlias = Callable[[Call], Awaitable[Result]]


class Runtime:
    """The runtime operations over the record path.

    Those of every day have two forms: a coroutine that takes a whole `Call`, and `..._soon`, which answers by calling `done` on
    the running event loop, perhaps before it returns. What it raises itself is an error to send, too.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._by_method: dict[str, _Operation] = {
            "GET": self.get_record,
            "PUT": self.put_record,
            "DELETE": self.delete_record,
        }
        self._by_last_segment: dict[str, _Operation] = {
            "Record": self.update_record,
            "ListRecords": self.list_records,
        }

    @staticmethod
    def owns(path: str) -> bool:
        """Whether a request path belongs to this API; no S3 bucket can, since their names have no capitals."""
        return path.startswith(f"/{FEATURE_GROUP}/") or path in (f"/{BATCH_GET_RECORD}", f"/{BATCH_WRITE_RECORD}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identifier = request_id()
        answer: Result | Exception | None
        try:
            answer = await self._answer(scope, receive)
        except Exception as error:  # the client must get an answer to whatever we did not foresee, too
            answer = error
        if answer is not None:
            complete = answered(answer, identifier, f"{scope['method']} {scope['path']}")
            await send_answer(send, complete, identifier, head=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive) -> Result | None:
        is_batch = scope["path"] == f"/{BATCH_WRITE_RECORD}"
        body = await read_body(receive, BATCH_BODY_BYTES_MAX if is_batch else BODY_BYTES_MAX)
        if body is None:
            return None
        call = Call(
            scope["method"],
            segments(scope.get("raw_path") or scope["path"].encode()),
            query(scope["query_string"]),
            body,
            _retry_token(scope["headers"]),
            _accept(scope["headers"]),
        )
        return await self.operation(call)(call)

    def operation(self, call: Call) -> _Operation:
        """Raises UnknownOperation."""
        match call.segments:
            case ["BatchGetRecord"] if call.method == "POST":
                return self.batch_get_record
            case ["BatchWriteRecord"] if call.method == "POST":
                return self.batch_write_record
            case ["FeatureGroup", name] if call.method in self._by_method and name:
                return self._by_method[call.method]
            case ["FeatureGroup", name, last] if call.method == "POST" and last in self._by_last_segment and name:
                return self._by_last_segment[last]
            case _:
                raise UnknownOperation(f"no operation has method {call.method} and path /{'/'.join(call.segments)}")

    async def put_record(self, call: Call) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.put_soon(call.segments[1], call.body, call.retry_token, partial(resolve, answer))
        return await answer

    def put_soon(self, group: str, body: bytes, retry_token: str | None, done: Done) -> None:
        """PutRecord."""
        plan = self._records.known_plan(group)
        if plan is None:
            _group_name(group)
        request = decode(body, PutRecordRequest)
        self._records.put_soon(
            plan or self._records.plan(group),
            _pairs(request.Record),
            lambda applied: done(applied if isinstance(applied, Exception) else DONE),
            targets=_targets(request.TargetStores),
            ttl=_ttl(request.TtlDuration),
            write_token=retry_token,
        )

    async def update_record(self, call: Call) -> Result:
        group = _group_name(call.segments[1])
        request = decode(call.body, UpdateRecordRequest)
        await self._records.update(
            group,
            request.RecordIdentifierValueAsString,
            _pairs(request.Features, path="Features"),
            targets=_targets(request.TargetStores),
            ttl=_ttl(request.TtlDuration),
            write_token=call.retry_token,
        )
        return DONE

    async def list_records(self, call: Call) -> Result:
        group = _group_name(call.segments[1])
        request = decode(call.body or b"{}", ListRecordsRequest)
        listed = await self._records.page(
            group,
            records_max=limits.LIST_RECORDS_MAX if request.MaxResults is None else request.MaxResults,
            token=request.NextToken,
            deleted=bool(request.IncludeSoftDeletedRecords),
        )
        body: dict[str, object] = {"RecordIdentifiers": listed.identifiers}
        if listed.next_token is not None:
            body["NextToken"] = listed.next_token
        return msgspec.json.encode(body)

    async def batch_write_record(self, call: Call) -> Result:
        _require_utf8(call.body)
        request = decode(call.body, BatchWriteRecordRequest)
        _require_count("Entries", len(request.Entries), limits.BATCH_WRITE_ENTRIES_MAX)
        ttl = _ttl(request.TtlDuration)
        for position, entry in enumerate(request.Entries):
            if not bytes(entry).startswith(b"{"):
                raise ValidationFailed.one(f"Entries[{position}]", "an object", bytes(entry)[:20].decode(errors="replace"))
        requests = [_write_request(entry, ttl) for entry in request.Entries]
        answers = await self._records.batch_put(requests, write_token=call.retry_token)
        errors, unprocessed = [], []
        for entry, answer in zip(request.Entries, answers, strict=True):
            if isinstance(answer, Applied):
                continue
            if isinstance(answer, StoreUnavailable):
                unprocessed.append(entry)
                continue
            if answer.code == "InternalFailure":
                _log.error("an entry of a batch was not written", exc_info=answer)
            errors.append({"Entry": entry, "ErrorCode": answer.code, "ErrorMessage": message_of(answer)})
        return msgspec.json.encode({"Errors": errors, "UnprocessedEntries": unprocessed})

    async def get_record(self, call: Call) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.get_soon(*asked_for(call), partial(resolve, answer))
        return await answer

    def get_soon(self, group: str, identifier: str, features: Sequence[str] | None, with_expiry: bool, done: Done) -> None:
        """GetRecord."""
        plan = self._records.known_plan(group)
        if plan is None or not plan.is_readable:
            plan = self._records.readable_plan(_group_name(group))
        form = plan.compiled.get(None) if features is None else None
        if not isinstance(form, RecordJson):
            form = record_json(plan, features)

        whole = form.whole

        def found(item: Found | Exception) -> None:
            answer: Result | Exception
            try:
                if isinstance(item, tuple):
                    answer = whole(item[0], item[1] if with_expiry else None)
                else:
                    answer = ABSENT if item is None else item
            except Exception as error:  # whatever it is, the client gets an answer
                answer = error
            done(answer)

        self._records.read_one(plan.group_id, plan.record_id(identifier), found)

    async def delete_record(self, call: Call) -> Result:
        group = _group_name(call.segments[1])
        mode = call.optional("DeletionMode")
        if mode is not None and mode not in DELETION_MODES:
            raise ValidationFailed.one("DeletionMode", "SoftDelete or HardDelete", mode)
        await self._records.delete(
            group,
            call.one("RecordIdentifierValueAsString"),
            call.one("EventTime"),
            hard=mode == "HardDelete",
            targets=_targets(call.query.get("TargetStores")),
            write_token=call.retry_token,
        )
        return DONE

    async def batch_get_record(self, call: Call) -> Result:
        if accepts_arrow(call.accept):
            batch = self._batch_get(call.body, record_columns)
            arrow = RecordArrow(batch)
            items: asyncio.Future[list[Found]] = asyncio.get_running_loop().create_future()
            self._records.read(batch.wanted, partial(resolve, items))
            return Answer(200, await arrow.stream(await items), ARROW_STREAM.encode())
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.batch_get_soon(call.body, partial(resolve, answer))
        return await answer

    def batch_get_soon(self, body: bytes, done: Done) -> None:
        """BatchGetRecord, answered in JSON."""
        batch = self._batch_get(body, record_json)

        def found(items: list[Found] | Exception) -> None:
            answer: Result | Exception
            try:
                answer = items if isinstance(items, Exception) else batch_json(batch, items)
            except Exception as error:  # whatever it is, the client gets an answer
                answer = error
            done(answer)

        self._records.read(batch.wanted, found)

    def _batch_get(self, body: bytes, form_of: Callable[[RecordPlan, Sequence[str] | None], Form]) -> BatchGet[Form]:
        """Check and plan a BatchGetRecord.

        Raises:
            ValidationFailed: the request as a whole is wrong.
        """
        request = decode(body, BatchGetRecordRequest)
        with_expiry = _with_expiry(request.ExpirationTimeResponse)
        _require_count("Identifiers", len(request.Identifiers), limits.BATCH_GET_GROUPS_MAX)
        for position, item in enumerate(request.Identifiers):
            path = f"Identifiers[{position}]"
            _group_name(item.FeatureGroupName, path=f"{path}.FeatureGroupName")
            count = len(item.RecordIdentifiersValueAsString)
            _require_count(f"{path}.RecordIdentifiersValueAsString", count, limits.BATCH_GET_IDENTIFIERS_MAX)
            if item.FeatureNames == []:
                raise ValidationFailed.one(f"{path}.FeatureNames", "at least one name, or no FeatureNames at all")
        entries: list[Entry[Form]] = []
        wanted: list[tuple[int, Sequence[str]]] = []
        errors: list[object] = []
        for position, item in enumerate(request.Identifiers):
            try:
                plan = self._records.readable_plan(item.FeatureGroupName)
                form = form_of(plan, item.FeatureNames)
            except (FeatureGroupNotFound, ValidationFailed) as error:
                errors += [_batch_error(item, identifier, error) for identifier in item.RecordIdentifiersValueAsString]
                continue
            identifiers = record_ids = item.RecordIdentifiersValueAsString
            if not plan.are_record_ids(identifiers):
                identifiers, record_ids = [], []
                for identifier in item.RecordIdentifiersValueAsString:
                    try:
                        record_ids.append(plan.record_id(identifier))
                    except ValidationFailed as error:
                        errors.append(_batch_error(item, identifier, error))
                    else:
                        identifiers.append(identifier)
            entries.append(Entry(position, item.FeatureGroupName, identifiers, form))
            wanted.append((plan.group_id, record_ids))
        return BatchGet(entries, wanted, errors, with_expiry)


def asked_for(call: Call) -> tuple[str, str, list[str] | None, bool]:
    """What a GetRecord asks for: group, identifier, features (None for all), and whether for the expiry.

    Raises:
        ValidationFailed
    """
    group = _group_name(call.segments[1])
    with_expiry = _with_expiry(call.optional("ExpirationTimeResponse"))
    return group, call.one("RecordIdentifierValueAsString"), call.query.get("FeatureName"), with_expiry


def _batch_error(item: BatchGetIdentifier, identifier: str, error: FeatureStoreError) -> dict[str, object]:
    return {
        "FeatureGroupName": item.FeatureGroupName,
        "RecordIdentifierValueAsString": identifier,
        "ErrorCode": error.code,
        "ErrorMessage": message_of(error),
    }


def _write_request(entry: msgspec.Raw, ttl: TtlDuration | None) -> WriteRequest | FeatureStoreError:
    """One entry of a BatchWriteRecord, or what is wrong with it."""
    try:
        found = decode(bytes(entry), BatchWriteEntry)
        group = _group_name(found.FeatureGroupName)
        own_ttl = _ttl(found.TtlDuration)
        return WriteRequest(group, _pairs(found.Record), _targets(found.TargetStores), ttl if own_ttl is None else own_ttl)
    except ValidationFailed as error:
        return error


def _pairs(values: Sequence[FeatureValue], *, path: str = "Record") -> list[FeaturePair]:
    if not values:
        raise ValidationFailed.one(path, "at least one feature value")
    return [
        (value.FeatureName, value.ValueAsString) if value.ValueAsStringList is None else _pair(value, path, position)
        for position, value in enumerate(values)
    ]


def _pair(value: FeatureValue, path: str, position: int) -> FeaturePair:
    """That of a collection."""
    if value.ValueAsString is not None:
        raise ValidationFailed.one(f"{path}[{position}]", "ValueAsString or ValueAsStringList, not both", value.FeatureName)
    return value.FeatureName, value.ValueAsStringList


def _ttl(ttl: Ttl | None) -> TtlDuration | None:
    return None if ttl is None else ttl.duration()


def _group_name(text: str, *, path: str = "FeatureGroupName") -> str:
    if len(text) > limits.RECORD_GROUP_CHARS_MAX:
        raise ValidationFailed.one(path, f"at most {limits.RECORD_GROUP_CHARS_MAX} characters", text)
    arn = limits.FEATURE_GROUP_ARN_PREFIX.match(text)
    name = text[arn.end() :] if arn else text
    if limits.FEATURE_GROUP_NAME.fullmatch(name) is None or len(name) > limits.FEATURE_GROUP_NAME_CHARS_MAX:
        raise ValidationFailed.one(path, "a feature group name or ARN", text)
    return text


def _targets(names: Sequence[str] | None) -> frozenset[TargetStore] | None:
    """The stores named by TargetStores; None when it is not given."""
    if names is None:
        return None
    try:
        targets = frozenset(TargetStore(name) for name in names)
    except ValueError as error:
        wrong = next(name for name in names if name not in set(TargetStore))
        raise ValidationFailed.one("TargetStores", "OnlineStore or OfflineStore", wrong) from error
    if not targets or len(targets) != len(names) or len(names) > limits.TARGET_STORES_MAX:
        raise ValidationFailed.one("TargetStores", "one or two different stores", list(map(str, names)))
    return targets


def _with_expiry(value: str | None) -> bool:
    if value is not None and value not in EXPIRATION_TIME_RESPONSES:
        raise ValidationFailed.one("ExpirationTimeResponse", "Enabled or Disabled", value)
    return value == "Enabled"


def _require_count(path: str, count: int, count_max: int) -> None:
    if not 1 <= count <= count_max:
        raise ValidationFailed([Fault(path, f"1 to {count_max} entries", count)])


def _require_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ValidationFailed.one("body", f"JSON in UTF-8 ({error})") from error


def segments(raw_path: bytes) -> list[str]:
    """The decoded path segments: split first, then decoded, so that an ARN's `%2F` stays within its segment."""
    path = raw_path.partition(b"?")[0]
    return [_decoded(segment, "path") for segment in path.split(b"/")[1:]]


def query(query_string: bytes) -> dict[str, list[str]]:
    query: dict[str, list[str]] = {}
    for part in query_string.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            query.setdefault(_decoded(name, "query"), []).append(_decoded(value, "query"))
    return query


def _decoded(text: bytes, path: str) -> str:
    try:
        return (unquote_to_bytes(text) if b"%" in text else text).decode()
    except UnicodeDecodeError as error:
        raise ValidationFailed.one(path, "UTF-8 behind the percent-encoding", text) from error


def _accept(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b", ".join(value for name, value in headers if name == b"accept")


def _retry_token(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == RETRY_TOKEN_HEADER and len(value) <= RETRY_TOKEN_CHARS_MAX:
            return value.decode("latin-1")
    return None
