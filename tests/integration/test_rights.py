"""Every operation that there is has a right; what is not known needs the highest."""

from __future__ import annotations

from typing import Any

import pytest

import featurestore
from api import app, openapi, rights
from api.control_plane import ControlPlane
from featurestore.access.authenticator import Caller
from featurestore.access.keys import Right
from featurestore.errors import AccessForbidden


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all operations that the service has."""
    with featurestore.open(tmp_path_factory.mktemp("rights")) as store:
        found = {f"sagemaker:{name}" for name in ControlPlane(store).operations}
        paths: dict[str, Any] = app._web(store, lambda: None).openapi()["paths"]
    for path, item in paths.items():
        for method in item:
            filled = path.replace("{name}", "g").replace("{FeatureGroupName}", "g")
            if path in openapi.RECORD_PATHS:
                found.add(rights.runtime_operation(method.upper(), filled.encode()))
            elif path.startswith("/v1/"):
                found.add(rights.native_operation(method.upper(), filled))
    return found


def test_every_operation_has_a_right(operations: set[str]) -> None:
    assert len(operations) > 15
    assert operations <= rights.RIGHTS.keys()
    assert not any(name.endswith(rights.UNKNOWN) for name in operations)


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", b"/FeatureGroup/g", "GetRecord"),
        ("PUT", b"/FeatureGroup/arn%3Aaws%2Fg", "PutRecord"),
        ("DELETE", b"/FeatureGroup/g", "DeleteRecord"),
        ("POST", b"/FeatureGroup/g/Record", "UpdateRecord"),
        ("POST", b"/FeatureGroup/g/ListRecords", "ListRecords"),
        ("POST", b"/BatchGetRecord", "BatchGetRecord"),
        ("POST", b"/BatchWriteRecord", "BatchWriteRecord"),
        ("POST", b"/FeatureGroup/g", "unknown"),
        ("GET", b"/BatchGetRecord", "unknown"),
        ("POST", b"/FeatureGroup/g/Other", "unknown"),
        ("PUT", b"/FeatureGroup/g/Record", "unknown"),
        ("POST", b"/FeatureGroup/g/Record/x", "unknown"),
    ],
)
def test_runtime_operations(method: str, path: bytes, operation: str) -> None:
    assert rights.runtime_operation(method, path) == f"sagemaker:{operation}"


@pytest.mark.parametrize("has", Right)
@pytest.mark.parametrize("needs", Right)
def test_a_right_includes_the_ones_before(has: Right, needs: Right) -> None:
    operation = next(name for name, right in rights.RIGHTS.items() if right is needs)
    order = [Right.READ, Right.WRITE, Right.ADMIN]
    if order.index(has) >= order.index(needs):
        rights.require(Caller("n", has), operation)
    else:
        with pytest.raises(AccessForbidden, match=f"key 'n' has the right {has}; {operation} needs {needs}"):
            rights.require(Caller("n", has), operation)


def test_what_nobody_knows_needs_the_highest() -> None:
    rights.require(Caller("n", Right.ADMIN), "sagemaker:Whatever")
    with pytest.raises(AccessForbidden):
        rights.require(Caller("n", Right.WRITE), "sagemaker:Whatever")
