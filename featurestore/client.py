"""The client of a running service: the store's verbs over HTTP, dataframes in and training sets out.

Records and feature groups use the AWS operations, bulk data the native routes with Arrow bodies (docs/reference/http.md).
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.access.sigv4 import Credentials, Request, sign
from featurestore.decoding import decode_json
from featurestore.errors import ServiceRefused, StoreUnavailable, ValidationFailed
from featurestore.model.feature_group import FeatureDefinition, FeatureType, TtlDuration
from featurestore.model.frame import arrow_table
from featurestore.model.inference import definitions_from, definitions_of, text_of, typed
from featurestore.query.training_set import TrainingSet

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
TIMEOUT_S: Final = 600.0
_SERVICE: Final = "sagemaker"
_REGION: Final = "us-east-1"
"""The service takes any: this one is what a store has unless told otherwise."""
_SIGNED: Final = (b"host", b"content-type", b"x-amz-target")


class Client:
    """A connection to a running service. Use it as a context manager, or `close` it. Safe to use from several threads.

    Requests are signed if there are credentials: those given, or else those of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
    AWS_SESSION_TOKEN.

    Args:
        url: as the service prints it, `http://127.0.0.1:8080`.
        credentials: of `featurestore keys create`, or of a session.
        timeout_s: of one request; a training set may take long.

    Raises:
        ValidationFailed: only one of the two environment variables of a key is there.
    """

    def __init__(self, url: str, *, credentials: Credentials | None = None, timeout_s: float = TIMEOUT_S) -> None:
        signing = credentials or _credentials_of(os.environ)
        self._http = httpx.Client(base_url=url, timeout=timeout_s, auth=None if signing is None else _Signing(signing))
        self._definitions: dict[str, dict[str, FeatureDefinition]] = {}
        self._descriptions: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def feature_groups(self) -> list[dict[str, Any]]:
        """All groups, newest first: name, arn, record_identifier, event_time, features (name to type), status."""
        groups: list[dict[str, Any]] = self._send("GET", "/v1/groups").json()
        return groups

    def create_feature_group(
        self,
        name: str,
        *,
        record_identifier: str,
        event_time: str,
        features: Mapping[str, str] | object,
        online: bool = True,
        offline: bool = True,
        ttl: TtlDuration | None = None,
        s3_uri: str = "s3://featurestore",
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Create a feature group and return its ARN. Arguments as for `FeatureStore.create_feature_group`.

        Raises:
            ServiceRefused, StoreUnavailable
        """
        known = isinstance(features, Mapping)
        definitions = definitions_from(features) if known else definitions_of(arrow_table(features))  # type: ignore[arg-type]
        request: dict[str, Any] = {
            "FeatureGroupName": name,
            "RecordIdentifierFeatureName": record_identifier,
            "EventTimeFeatureName": event_time,
            "FeatureDefinitions": [{"FeatureName": item.name, "FeatureType": item.type} for item in definitions],
            "Tags": [{"Key": key, "Value": value} for key, value in (tags or {}).items()],
        }
        if online:
            request["OnlineStoreConfig"] = {"EnableOnlineStore": True}
            if ttl is not None:
                request["OnlineStoreConfig"]["TtlDuration"] = {"Unit": ttl.unit, "Value": ttl.value}
        if offline:
            request["OfflineStoreConfig"] = {"S3StorageConfig": {"S3Uri": s3_uri}}
        if description is not None:
            request["Description"] = description
        return str(self._control("CreateFeatureGroup", request)["FeatureGroupArn"])

    def delete_feature_group(self, name: str) -> None:
        """Delete a group with its online records. Its offline files stay."""
        self._control("DeleteFeatureGroup", {"FeatureGroupName": name})
        self._definitions.pop(name, None)

    def put_record(self, group: str, record: Mapping[str, object], *, ttl: TtlDuration | None = None) -> None:
        """Write one record: feature name to value; None and NaN leave a feature out.

        Raises:
            ValidationFailed: a value has no text form.
            ServiceRefused, StoreUnavailable
        """
        definitions = self._features(group)
        pairs = []
        for name, value in record.items():
            definition = definitions.get(name, FeatureDefinition(name, FeatureType.STRING))
            text = text_of(value, definition, path=f"record.{name}")
            if text is not None:
                pairs.append({"FeatureName": name, "ValueAsString" if isinstance(text, str) else "ValueAsStringList": text})
        body: dict[str, Any] = {"Record": pairs}
        if ttl is not None:
            body["TtlDuration"] = {"Unit": ttl.unit, "Value": ttl.value}
        self._send("PUT", f"/FeatureGroup/{quote(group, safe='')}", json=body)

    def get_record(self, group: str, identifier: object, features: Sequence[str] | None = None) -> dict[str, object] | None:
        """The live record of an identifier as feature name to typed value; None if there is none.

        Raises:
            ServiceRefused, StoreUnavailable
        """
        query: dict[str, Any] = {"RecordIdentifierValueAsString": self._identifier(group, identifier)}
        if features is not None:
            query["FeatureName"] = list(features)
        answer = self._send("GET", f"/FeatureGroup/{quote(group, safe='')}", params=query).json()
        return self._record(group, answer["Record"]) if "Record" in answer else None

    def batch_get_record(
        self, group: str, identifiers: Sequence[object], features: Sequence[str] | None = None
    ) -> list[dict[str, object] | None]:
        """`get_record` for 1 to 100 identifiers in one request, in their order.

        Raises:
            ServiceRefused: also if one of the identifiers can't be answered.
            StoreUnavailable
        """
        texts = [self._identifier(group, identifier) for identifier in identifiers]
        wanted: dict[str, Any] = {"FeatureGroupName": group, "RecordIdentifiersValueAsString": texts}
        if features is not None:
            wanted["FeatureNames"] = list(features)
        answer = self._send("POST", "/BatchGetRecord", json={"Identifiers": [wanted]}).json()
        if answer["Errors"]:
            raise ServiceRefused(answer["Errors"][0]["ErrorCode"], answer["Errors"][0]["ErrorMessage"])
        found = {item["RecordIdentifierValueAsString"]: item["Record"] for item in answer["Records"]}
        return [self._record(group, found[text]) if text in found else None for text in texts]

    def delete_record(self, group: str, identifier: object, event_time: object, *, hard: bool = False) -> None:
        """Delete one record as of an event time.

        Raises:
            ServiceRefused, StoreUnavailable
        """
        definition = self._features(group)[self._description(group)["EventTimeFeatureName"]]
        query = {
            "RecordIdentifierValueAsString": self._identifier(group, identifier),
            "EventTime": str(text_of(event_time, definition, path="event_time")),
            "DeletionMode": "HardDelete" if hard else "SoftDelete",
        }
        self._send("DELETE", f"/FeatureGroup/{quote(group, safe='')}", params=query)

    def ingest(self, group: str, frame: object, *, skip_faulty: bool = False) -> dict[str, Any]:
        """Write a dataframe, all or nothing; returns rows, files, online_newest, skipped, faults and took_s.

        Raises:
            ValidationFailed: the frame has no uniform columns.
            ServiceRefused: naming row, column and value of each fault.
            StoreUnavailable
        """
        answer = self._send(
            "POST",
            f"/v1/groups/{quote(group, safe='')}/records",
            params={"skip_faulty": skip_faulty},
            content=_stream(arrow_table(frame)),
            headers={"content-type": ARROW_STREAM},
        )
        report: dict[str, Any] = answer.json()
        return report

    def create_training_set(
        self,
        spine: object,
        features: Sequence[str] | Mapping[str, str],
        *,
        event_time: str,
        keys: Mapping[str, str] | None = None,
        known_by: datetime | None = None,
        as_served: bool = False,
        as_of: datetime | None = None,
        event_times: bool = False,
        fresh: bool = True,
    ) -> TrainingSet:
        """Join features to a spine as of each row's time. Arguments as for `FeatureStore.create_training_set`.

        Raises:
            ValidationFailed: the spine is no dataframe, Parquet file or SQL.
            ServiceRefused, StoreUnavailable
        """
        request: dict[str, Any] = {
            "features": dict(features) if isinstance(features, Mapping) else list(features),
            "event_time": event_time,
            "keys": dict(keys or {}),
            "known_by": None if known_by is None else known_by.isoformat(),
            "as_served": as_served,
            "as_of": None if as_of is None else as_of.isoformat(),
            "event_times": event_times,
            "fresh": fresh,
        }
        accept = {"accept": ARROW_STREAM}
        if isinstance(spine, str):
            answer = self._send("POST", "/v1/training-sets", json=request | {"spine_sql": spine}, headers=accept)
        else:
            answer = self._send(
                "POST",
                "/v1/training-sets",
                params={"request": msgspec.json.encode(request).decode()},
                content=_stream(_spine(spine)),
                headers=accept | {"content-type": ARROW_STREAM},
            )
        table = pa.ipc.open_stream(answer.content).read_all()
        spine_columns = int(answer.headers["x-featurestore-spine-columns"])
        names = table.column_names
        return TrainingSet(
            table.select(names[:spine_columns]),
            table.select(names[spine_columns:]),
            decode_json(answer.headers["x-featurestore-versions"], dict[str, int]),
        )

    def sql(self, statement: str, *, as_of: datetime | None = None, fresh: bool = True) -> pa.Table:
        """One SELECT over the offline store, if wanted as it was at a time in the past.

        Raises:
            ServiceRefused, StoreUnavailable
        """
        body = {"statement": statement, "as_of": None if as_of is None else as_of.isoformat(), "fresh": fresh}
        answer = self._send("POST", "/v1/sql", json=body, headers={"accept": ARROW_STREAM})
        return pa.ipc.open_stream(answer.content).read_all()

    def erase(self, group: str, *identifiers: object) -> dict[str, Any]:
        """Erase records from everywhere, see `FeatureStore.erase`; returns the receipt.

        Raises:
            ServiceRefused, StoreUnavailable
        """
        path = f"/v1/groups/{quote(group, safe='')}/erase"
        receipt: dict[str, Any] = self._send("POST", path, json={"identifiers": list(identifiers)}).json()
        return receipt

    def flush(self) -> None:
        """Write every change acknowledged so far to the offline store."""
        self._send("POST", "/v1/flush")

    def _description(self, group: str) -> dict[str, Any]:
        if group not in self._descriptions:
            self._descriptions[group] = self._control("DescribeFeatureGroup", {"FeatureGroupName": group})
        return self._descriptions[group]

    def _features(self, group: str) -> dict[str, FeatureDefinition]:
        """The group's features; read once, as a type never changes and the service checks what is new."""
        if group not in self._definitions:
            self._definitions[group] = {
                item["FeatureName"]: FeatureDefinition(item["FeatureName"], FeatureType(item["FeatureType"]))
                for item in self._description(group)["FeatureDefinitions"]
            }
        return self._definitions[group]

    def _identifier(self, group: str, identifier: object) -> str:
        definition = self._features(group)[self._description(group)["RecordIdentifierFeatureName"]]
        text = text_of(identifier, definition, path="identifier")
        if not isinstance(text, str):
            raise ValidationFailed.one("identifier", "a record identifier", identifier)
        return text

    def _record(self, group: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
        definitions = self._features(group)
        record: dict[str, object] = {}
        for pair in pairs:
            value = pair.get("ValueAsString", pair.get("ValueAsStringList"))
            definition = definitions.get(pair["FeatureName"])
            record[pair["FeatureName"]] = value if definition is None else typed(value, definition)
        return record

    def _control(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"x-amz-target": f"SageMaker.{operation}", "content-type": "application/x-amz-json-1.1"}
        answer = self._send("POST", "/", content=msgspec.json.encode(request), headers=headers)
        result: dict[str, Any] = answer.json() if answer.content else {}
        return result

    def _send(self, method: str, path: str, **parts: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **parts)
        except httpx.TransportError as error:
            raise StoreUnavailable(f"{method} {path}", f"{self._http.base_url} does not answer: {error}") from error
        if answer.is_success:
            return answer
        try:
            body = answer.json()
        except ValueError:
            body = {}
        code = answer.headers.get("x-amzn-errortype") or body.get("__type") or str(answer.status_code)
        message = body.get("Message") or answer.text
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise StoreUnavailable(f"{method} {path}", message)
        raise ServiceRefused(code, message)


class _Signing(httpx.Auth):
    """Signs each request just before it is sent."""

    requires_request_body = True

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        path, _, query = request.url.raw_path.partition(b"?")
        # What is on the way may be changed by a proxy; what says what the request means is signed.
        headers = [(name, request.headers[name.decode()].encode()) for name in _SIGNED if name.decode() in request.headers]
        digest = hashlib.sha256(request.content).hexdigest()
        bare = Request(request.method, path, query, headers)
        for name, value in sign(bare, self._credentials, digest, service=_SERVICE, region=_REGION, now_s=time.time()):
            request.headers[name] = value
        yield request


def _credentials_of(environ: Mapping[str, str]) -> Credentials | None:
    """The credentials that AWS clients find in the environment."""
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not key and not secret:
        return None
    if not key or not secret:
        missing, found = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID") if key else ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        raise ValidationFailed.one(missing, f"a value, as {found} has one")
    return Credentials(key, secret, environ.get("AWS_SESSION_TOKEN") or None)


def _spine(spine: object) -> pa.Table:
    if not isinstance(spine, Path):
        return arrow_table(spine)
    try:
        return pq.read_table(spine)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValidationFailed.one("spine", f"a readable Parquet file ({error})", str(spine)) from error


def _stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
