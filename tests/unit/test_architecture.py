"""The house rules that a tool can hold: imports go down only, and nothing of ours is imported inside a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    "featurestore.errors": 0,
    "featurestore.decoding": 0,
    "featurestore.model": 1,
    "featurestore.settings": 2,
    "featurestore.logs": 1,
    "featurestore.progress": 1,
    "featurestore.stopwatch": 1,
    "featurestore.temporary": 1,
    "featurestore.beneath": 1,
    "featurestore.engine": 2,
    "featurestore.keyspace": 1,
    "featurestore.registry": 2,
    "featurestore.changelog": 2,
    "featurestore.access": 3,
    "featurestore.online": 3,
    "featurestore.offline": 3,
    "featurestore.buckets": 4,
    "featurestore.query": 4,
    "featurestore.records": 4,
    "featurestore.batch_ingest": 4,
    "featurestore.erase": 5,
    "featurestore.audit": 5,
    "featurestore.rebuild": 5,
    "featurestore.streaming": 5,
    "featurestore.athena": 5,
    "featurestore.store": 6,
    "featurestore.client": 7,
    "featurestore": 8,
    "api": 9,
    "ingest": 9,
    "featurestore.demo": 10,
    "featurestore.cli": 11,
}
"""A module may import what lies on a lower floor, and its own package."""

MODULES = sorted(
    path.relative_to(ROOT) for package in ("featurestore", "api", "ingest") for path in (ROOT / package).rglob("*.py")
)


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The longest known prefix of a module name."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in FLOORS and (name != "featurestore" or module == "featurestore"):
            return name
    raise AssertionError(f"{module} has no floor: add it to FLOORS")


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module in ("featurestore", "api", "ingest", "featurestore.model"):
                found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
            elif node.module is not None:
                found.append((node.module, node.lineno))
    return [(name, line) for name, line in found if name.split(".")[0] in ("featurestore", "api", "ingest")]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(module_name(path))
    for name, line in imports(ast.parse((ROOT / path).read_text())):
        target = room_of(name)
        if target == room:
            continue
        assert FLOORS[target] < FLOORS[room], f"{path}:{line}: {room} must not import {target}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_of_ours_is_imported_inside_a_function(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not imports(node), f"{path}:{node.lineno}: {node.name} imports our own code"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_package_files_only_re_export(path: Path) -> None:
    if path == Path("featurestore/__init__.py"):
        return  # it has the one verb that opens a store
    for node in ast.parse((ROOT / path).read_text()).body:
        allowed = isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
        is_all = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        assert allowed or is_all, f"{path}:{node.lineno}: only re-exports belong here"


def test_no_room_for_odds_and_ends() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]


@pytest.mark.parametrize("path", [path for path in MODULES if path != Path("featurestore/decoding.py")], ids=str)
def test_types_are_decoded_in_one_place(path: Path) -> None:
    """See `featurestore.decoding`: two threads that decode a type for the first time can end the process."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "msgspec.json.decode",
            "msgspec.msgpack.decode",
            "msgspec.convert",
        ):
            assert "type" not in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}: use featurestore.decoding"
