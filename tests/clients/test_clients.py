"""Unmodified clients, each with its own versions in an environment of its own, against the real service over a socket.

What a client is asked to do is a script that runs in its environment (`tests/clients/<client>/`, and `examples/`). Each runs over
https signed with a key, and over http without keys; boto3 also in the other two combinations, since it sends uploads in another
form in each. The longest scripts run once unless CLIENT_RUNS=all is set. A connection to anywhere but this machine fails, and is
found even when the client swallows that.

All runs that were selected start together and are waited for one after the other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service import Service

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
ENVIRONMENTS = Path(os.environ.get("CLIENTS_HOME", str(HERE.parents[1] / "build" / "clients")))
MISSING = "NO CLIENT {}: its tests do not run. Run tests/clients/install.sh."
RUN_S_MAX = 900.0
RUNS_AT_ONCE = 4

SCRIPTS = {
    "sagemaker_v3": [EXAMPLES / "sagemaker_v3.py", HERE / "sagemaker_v3" / "options.py"],
    "sagemaker_v2": [EXAMPLES / "sagemaker_v2.py", HERE / "sagemaker_v2" / "options.py"],
    "java": [HERE / "java" / "Operations.java"],
    "awscli": [HERE / "awscli" / "commands.py"],
    "boto3": [
        EXAMPLES / "boto3_quickstart.py",
        *(HERE / "boto3" / name for name in ("groups.py", "records.py", "objects.py", "queries.py")),
    ],
    "boto3_old": [HERE / "boto3" / name for name in ("objects.py", "queries.py")],
    "javascript": [HERE / "javascript" / "operations.cjs"],
}
"""The longest ones first."""
ONCE = {HERE / "sagemaker_v3" / "options.py", HERE / "sagemaker_v2" / "options.py"}
"""Over SECURE only: what they ask for depends on the SDK and not on the way there."""
PLAIN, SECURE = "http", "https-signed"
MATRIX = [(client, door) for client in SCRIPTS for door in (SECURE, PLAIN)]
MATRIX += [("boto3", "http-signed"), ("boto3", "https")]


@dataclass(frozen=True)
class Door:
    """A service as its clients reach it."""

    name: str
    service: Service
    environ: dict[str, str]


@dataclass(frozen=True)
class Ended:
    status: int
    output: str
    left: str
    """Connections that the script tried to anywhere but this machine, one per line."""


def _certificate(folder: Path) -> dict[str, str]:
    """Settings of a service that shows a certificate made for this machine's own address."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return {"tls_cert_file": str(certificate), "tls_key_file": str(key)}


def _key(home: Path, name: str, right: str) -> tuple[str, str]:
    """A new access key and its secret."""
    command = [sys.executable, "-m", "featurestore.cli", "keys", "create", name, "--right", right, "--home", str(home)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    exported = dict(re.findall(r"export (\w+)=(\S+)", printed))
    return exported["AWS_ACCESS_KEY_ID"], exported["AWS_SECRET_ACCESS_KEY"]


def _open(name: str, folder: Path) -> Door:
    folder.mkdir()
    settings = _certificate(folder) if name.startswith("https") else {}
    environ = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HOME": str(folder),
        "PYTHONPATH": str(HERE / "inside"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",  # Java and JavaScript read this one
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(EXAMPLES / "sagemaker_config.yaml"),
        "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
    }
    if settings:
        environ["AWS_CA_BUNDLE"] = environ["NODE_EXTRA_CA_CERTS"] = settings["tls_cert_file"]
    if name.endswith("-signed"):
        environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"] = _key(folder / "home", "owner", "admin")
        environ["READER_ACCESS_KEY_ID"], environ["READER_SECRET_ACCESS_KEY"] = _key(folder / "home", "reader", "read")
    service = Service(folder / "home", folder / "log", **settings).start()
    return Door(name, service, environ | {"AWS_ENDPOINT_URL": service.url})


def _scripts(client: str, door: str) -> list[str]:
    once = door != SECURE and os.environ.get("CLIENT_RUNS") != "all"
    return [str(script) for script in SCRIPTS[client] if not (once and script in ONCE)]


def _command(client: str, door: Door, folder: Path) -> list[str]:
    """The command that runs a client's scripts, and lets them connect to nothing but this machine."""
    environment = ENVIRONMENTS / client
    scripts = _scripts(client, door.name)
    if client == "javascript":
        return ["node", "--require", str(HERE / client / "guard.cjs"), *scripts]
    if client == "java":
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        options = ["-XX:TieredStopAtLevel=1", f"-Djdk.net.hosts.file={folder / 'hosts'}"]  # no other name has an address
        if "AWS_CA_BUNDLE" in door.environ:
            trusted = folder / "trusted"
            command = ["keytool", "-importcert", "-noprompt", "-alias", "test", "-file", door.environ["AWS_CA_BUNDLE"]]
            subprocess.run([*command, "-keystore", str(trusted), "-storepass", "testing"], check=True, capture_output=True)
            options += [f"-Djavax.net.ssl.trustStore={trusted}", "-Djavax.net.ssl.trustStorePassword=testing"]
        return ["java", *options, "-cp", f"{environment}/*", *scripts]
    return [str(environment / "bin" / "python"), "-m", "run", *scripts]


def _run(client: str, door: Door, folder: Path) -> Ended:
    """Run the scripts of a client, in a folder of their own, to which the SDKs write files."""
    folder.mkdir()
    left = folder / "left"
    own = {"GUARD_LOG": str(left), "TMPDIR": str(folder), "NODE_PATH": str(ENVIRONMENTS / client / "node_modules")}
    with (folder / "output").open("w") as output:
        status = subprocess.run(
            _command(client, door, folder),
            cwd=folder,
            env=door.environ | own,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=RUN_S_MAX,
            check=False,
        ).returncode
    return Ended(status, (folder / "output").read_text(), left.read_text() if left.exists() else "")


def _installed(client: str) -> bool:
    return (ENVIRONMENTS / client / ".installed").exists()


Runs = dict[tuple[str, str], Future[Ended]]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All selected runs, under way."""
    folder = tmp_path_factory.mktemp("clients")
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = {given["run"] for given in parameters if given.get("run") in MATRIX}
    wanted = [run for run in MATRIX if run in selected and _installed(run[0])]
    doors: dict[str, Door] = {}
    pool = ThreadPoolExecutor(RUNS_AT_ONCE)
    try:
        for _, name in wanted:
            if name not in doors:
                doors[name] = _open(name, folder / name)
        yield {(client, name): pool.submit(_run, client, doors[name], folder / f"{client}-{name}") for client, name in wanted}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        statuses = {name: (door.service.stop(), door.service.log.read_text()) for name, door in doors.items()}
    for status, log in statuses.values():
        assert status == 0, log
        assert "Traceback" not in log, log
        assert " ERROR " not in log, log


@pytest.mark.parametrize("run", MATRIX, ids="-".join)
def test_client(run: tuple[str, str], runs: Runs) -> None:
    """The scripts of one client pass, and nothing leaves the machine."""
    client, _ = run
    if not _installed(client):
        if os.environ.get("CI"):
            pytest.fail(MISSING.format(client))
        pytest.skip(MISSING.format(client))
    ended = runs[run].result()
    print(ended.output)
    assert ended.status == 0, "\n".join(ended.output.splitlines()[-60:])
    assert not ended.left, ended.left


def test_every_environment_has_scripts() -> None:
    locks = [path for name in ("requirements.lock", "package-lock.json", "pom.xml") for path in HERE.glob(f"*/{name}")]
    assert {path.parent.name for path in locks} == set(SCRIPTS)
    assert shutil.which("openssl")
