"""Which right an operation needs.

Operations are named as IAM names actions, `<service>:<operation>`; those of the store's own routes are `featurestore:...`. The
division follows the permissions with which AWS shares feature groups between accounts: read-only, read-write and admin.
What is not in the table needs `admin`: an operation that somebody forgot to add is closed.
"""

from __future__ import annotations

import re
from typing import Final

from featurestore.access.authenticator import Caller
from featurestore.access.keys import Right
from featurestore.errors import AccessForbidden

_READ: Final = (
    "sagemaker:GetRecord",
    "sagemaker:BatchGetRecord",
    "sagemaker:ListRecords",
    "sagemaker:DescribeFeatureGroup",
    "sagemaker:ListFeatureGroups",
    "sagemaker:DescribeFeatureMetadata",
    "sagemaker:ListTags",
    "sagemaker:Search",
    "athena:StartQueryExecution",
    "athena:GetQueryExecution",
    "athena:GetQueryResults",
    "athena:StopQueryExecution",
    "athena:ListQueryExecutions",
    "athena:BatchGetQueryExecution",
    "athena:GetWorkGroup",
    "athena:GetDatabase",
    "athena:ListDatabases",
    "athena:GetTableMetadata",
    "athena:ListTableMetadata",
    "s3:GET",
    "s3:HEAD",
    "sts:GetCallerIdentity",
    "sts:AssumeRole",
    "featurestore:ListGroups",
    "featurestore:Sql",
    "featurestore:CreateTrainingSet",
    "featurestore:Flush",
)
_WRITE: Final = (
    "sagemaker:PutRecord",
    "sagemaker:DeleteRecord",
    "sagemaker:UpdateRecord",
    "sagemaker:BatchWriteRecord",
    "s3:PUT",
    "s3:POST",
    "s3:DELETE",
    "featurestore:Ingest",
)
_ADMIN: Final = (
    "sagemaker:CreateFeatureGroup",
    "sagemaker:UpdateFeatureGroup",
    "sagemaker:DeleteFeatureGroup",
    "sagemaker:UpdateFeatureMetadata",
    "sagemaker:AddTags",
    "sagemaker:DeleteTags",
    "featurestore:Erase",
)
RIGHTS: Final = dict.fromkeys(_READ, Right.READ) | dict.fromkeys(_WRITE, Right.WRITE) | dict.fromkeys(_ADMIN, Right.ADMIN)
UNKNOWN: Final = "unknown"

_ON_RECORDS: Final = {"GET": "GetRecord", "PUT": "PutRecord", "DELETE": "DeleteRecord"}
_BELOW_GROUP: Final = {b"Record": "UpdateRecord", b"ListRecords": "ListRecords"}
_WITHOUT_GROUP: Final = {b"/BatchGetRecord": "BatchGetRecord", b"/BatchWriteRecord": "BatchWriteRecord"}
_NATIVE: Final = (
    ("GET", re.compile(r"/v1/groups"), "ListGroups"),
    ("POST", re.compile(r"/v1/sql"), "Sql"),
    ("POST", re.compile(r"/v1/training-sets"), "CreateTrainingSet"),
    ("POST", re.compile(r"/v1/flush"), "Flush"),
    ("POST", re.compile(r"/v1/groups/[^/]+/records"), "Ingest"),
    ("POST", re.compile(r"/v1/groups/[^/]+/erase"), "Erase"),
)


def runtime_operation(method: str, raw_path: bytes) -> str:
    """The operation of a request to the runtime API, by its method and the shape of its path."""
    if method == "POST" and raw_path in _WITHOUT_GROUP:
        return f"sagemaker:{_WITHOUT_GROUP[raw_path]}"
    segments = raw_path.split(b"/")
    if len(segments) == 3:
        return f"sagemaker:{_ON_RECORDS.get(method, UNKNOWN)}"
    if len(segments) == 4 and method == "POST":
        return f"sagemaker:{_BELOW_GROUP.get(segments[3], UNKNOWN)}"
    return f"sagemaker:{UNKNOWN}"


def native_operation(method: str, path: str) -> str:
    """The operation of a request to the store's own routes."""
    for verb, pattern, name in _NATIVE:
        if verb == method and pattern.fullmatch(path):
            return f"featurestore:{name}"
    return f"featurestore:{UNKNOWN}"


def require(caller: Caller, operation: str) -> None:
    """Raises AccessForbidden: the caller's right does not cover the operation."""
    needed = RIGHTS.get(operation, Right.ADMIN)
    if not caller.right.covers(needed):
        raise AccessForbidden(f"key {caller.name!r} has the right {caller.right}; {operation} needs {needed}")
