"""Access keys as an operator and their users meet them: the command line, boto3, STS, TLS, our own client."""

from __future__ import annotations

import datetime
import functools
import http.client
import io
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pyarrow as pa
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import featurestore
from api import server
from featurestore import Credentials
from featurestore.access.keys import Right, open_keys
from featurestore.errors import ServiceRefused, SettingsInvalid, ValidationFailed
from featurestore.settings import Settings
from tests.integration.conftest import FEATURES, OFFLINE, ONLINE, Cli, Http, record, unique_name
from tests.service import Service

ADMIN = {"admin_access_key_id": "featurestore-admin", "admin_secret_access_key": "an administrator's secret"}
ROOT = Credentials(ADMIN["admin_access_key_id"], ADMIN["admin_secret_access_key"])
EXPORTS = re.compile(r"export AWS_ACCESS_KEY_ID=(\S+)\nexport AWS_SECRET_ACCESS_KEY=(\S+)\n")
ROLE = "arn:aws:iam::123456789012:role/service-role/training"
SEEN_S_MAX = 20.0


@functools.cache  # loading a service model takes longer than a call
def client(name: str, url: str, credentials: Credentials, **more: Any) -> Any:
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client(
        name,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token,
        config=config,
        **more,
    )


def code_of(call: Callable[..., Any], **members: Any) -> str | None:
    """The error code of a call; None if it succeeds."""
    try:
        call(**members)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SEEN_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.02)


def created(home: Path, name: str, right: str) -> Credentials:
    """A new key, made in this process: to a service, in another one."""
    with open_keys(Settings.load({}, home=home)) as keys:
        key = keys.create(name, Right(right))
    return Credentials(key.access_key_id, key.secret_access_key)


def revoke(home: Path, name: str) -> None:
    with open_keys(Settings.load({}, home=home)) as keys:
        keys.revoke(name)


def assumed(sts: Any, **members: Any) -> Credentials:
    answer = sts.assume_role(**{"RoleArn": ROLE, "RoleSessionName": "nightly"} | members)
    given = answer["Credentials"]
    return Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "home"


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    running = Service(home, home.parent / "log", **ADMIN).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def group(service: Service) -> str:
    name = unique_name()
    client("sagemaker", service.url, ROOT).create_feature_group(
        FeatureGroupName=name,
        RecordIdentifierFeatureName="id",
        EventTimeFeatureName="at",
        FeatureDefinitions=FEATURES,
        OnlineStoreConfig=ONLINE,
        OfflineStoreConfig=OFFLINE,
    )
    return name


def get(url: str, credentials: Credentials, group: str) -> str | None:
    runtime = client("sagemaker-featurestore-runtime", url, credentials)
    return code_of(runtime.get_record, FeatureGroupName=group, RecordIdentifierValueAsString="k")


def put(url: str, credentials: Credentials, group: str) -> str | None:
    runtime = client("sagemaker-featurestore-runtime", url, credentials)
    return code_of(runtime.put_record, FeatureGroupName=group, Record=record(id="k", at="2024-05-01T00:00:00Z"))


class TestCommands:
    def test_from_create_to_revoke(self, cli: Cli, tmp_path: Path) -> None:
        home = tmp_path / "home"
        done = cli("keys", "create", "etl@example.com", "--home", home)
        match = EXPORTS.fullmatch(done.stdout)
        assert match, done
        key = Credentials(match[1], match[2])
        assert re.fullmatch("FSKA[A-Z2-7]{16}", key.access_key_id)
        assert len(key.secret_access_key) == 40

        listed = cli("keys", "list", "--home", home, **ADMIN)
        (line,) = [line for line in listed.stdout.splitlines() if "etl@example.com" in line]
        assert line.split()[:3] == ["etl@example.com", key.access_key_id, "write"]
        (line,) = [line for line in listed.stdout.splitlines() if "root" in line]
        assert line.split()[:3] == ["root", ADMIN["admin_access_key_id"], "admin"]
        for secret in (key.secret_access_key, ADMIN["admin_secret_access_key"]):
            assert secret not in listed.stdout + listed.stderr

        taken = cli("keys", "create", "etl@example.com", "--home", home)
        assert (taken.returncode, taken.stdout) == (1, "")
        assert taken.stderr.startswith("error: access key 'etl@example.com' exists already")
        assert cli("keys", "revoke", "etl@example.com", "--home", home).returncode == 0
        with open_keys(Settings.load({}, home=home)) as keys:
            assert (list(keys.list()), dict(keys.read().live), keys.read().required) == ([], {}, True)

    def test_a_revoked_secret_is_forgotten(self, tmp_path: Path) -> None:
        revoked, kept = created(tmp_path, "somebody", "read"), created(tmp_path, "else", "read")
        assert revoked.secret_access_key.encode() in (tmp_path / "registry.db").read_bytes()
        revoke(tmp_path, "somebody")
        assert kept.secret_access_key.encode() in (tmp_path / "registry.db").read_bytes()
        assert revoked.secret_access_key.encode() not in (tmp_path / "registry.db").read_bytes()

    def test_the_database_is_closed_to_others(self, tmp_path: Path) -> None:
        with featurestore.open(tmp_path):
            created(tmp_path, "somebody", "read")
            files = [file for file in tmp_path.iterdir() if file.name.startswith("registry.db")]
            assert len(files) == 3
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "x" * 65, "root"])
    def test_names(self, tmp_path: Path, name: str) -> None:
        with open_keys(Settings.load({}, home=tmp_path)) as keys, pytest.raises(ValidationFailed, match="name: expected 1 to 64"):
            keys.create(name, Right.READ)


class TestRights:
    def test_each_right_includes_the_ones_before(self, service: Service, home: Path, group: str) -> None:
        may = {}
        for right in ("read", "write", "admin"):
            key = created(home, f"rights-{right}", right)
            wait_until(lambda key=key: get(service.url, key, group) is None)
            control = client("sagemaker", service.url, key)
            may[right] = (
                code_of(control.describe_feature_group, FeatureGroupName=group),
                put(service.url, key, group),
                code_of(control.add_tags, ResourceArn=_arn(group), Tags=[{"Key": "k", "Value": "v"}]),
            )
        assert may == {
            "read": (None, "AccessForbidden", "AccessDeniedException"),
            "write": (None, None, "AccessDeniedException"),
            "admin": (None, None, None),
        }

    def test_the_modelled_exceptions_are_raised(self, service: Service, home: Path, group: str) -> None:
        key = created(home, "modelled", "read")
        wait_until(lambda: get(service.url, key, group) is None)
        runtime = client("sagemaker-featurestore-runtime", service.url, key)
        with pytest.raises(runtime.exceptions.AccessForbidden, match="'modelled' has the right read.*PutRecord needs write"):
            runtime.put_record(FeatureGroupName=group, Record=record(id="k", at="2024-05-01T00:00:00Z"))


def test_boto3_goes_on_after_a_refused_upload(service: Service) -> None:
    """It waits with the body (`Expect: 100-continue`) and keeps the connection."""
    s3 = client("s3", service.url, Credentials(ROOT.access_key_id, "another"))
    codes = [code_of(s3.put_object, Bucket="bucket", Key="key", Body=io.BytesIO(b"x" * 1000)) for _ in range(3)]
    assert codes == ["SignatureDoesNotMatch"] * 3


def test_objects_and_presigned_urls(service: Service) -> None:
    v4 = boto3.session.Session(ROOT.access_key_id, ROOT.secret_access_key, region_name="us-east-1")
    s3 = v4.client("s3", endpoint_url=service.url, config=Config(signature_version="s3v4"))
    s3.create_bucket(Bucket="bucket")
    place = {"Bucket": "bucket", "Key": "a b/ü+(1)~'!.csv"}
    s3.put_object(**place, Body=b"hello")
    assert s3.get_object(**place)["Body"].read() == b"hello"
    assert [item["Key"] for item in s3.list_objects_v2(Bucket="bucket", Prefix="a b/ü+")["Contents"]] == [place["Key"]]
    with httpx.Client(trust_env=False) as anybody:
        put = s3.generate_presigned_url("put_object", Params=place, ExpiresIn=60)
        assert anybody.put(put, content=b"presigned").status_code == 200
        get = s3.generate_presigned_url(
            "get_object", Params=place | {"ResponseContentType": "text/csv; charset=utf-8"}, ExpiresIn=60
        )
        answer = anybody.get(get)
        assert (answer.content, answer.headers["content-type"]) == (b"presigned", "text/csv; charset=utf-8")
        assert anybody.delete(get).status_code == 403
        assert anybody.get(get.replace("text%2Fcsv", "text%2Fxml")).status_code == 403
    assert s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": place["Key"]}]})["Deleted"]
    s3.close()


class TestChanges:
    def test_another_process_sees_a_key_come_and_go(self, service: Service, home: Path, group: str) -> None:
        key = created(home, "coming", "read")
        wait_until(lambda: get(service.url, key, group) is None)
        session = assumed(client("sts", service.url, key))
        assert get(service.url, session, group) is None
        revoke(home, "coming")
        wait_until(lambda: get(service.url, key, group) == "UnrecognizedClientException")
        assert get(service.url, session, group) == "UnrecognizedClientException"

    def test_the_first_key_closes_a_running_service_and_the_last_leaves_it_closed(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        with Service(home, tmp_path / "log") as service:
            http_client = Http(service.port)
            assert http_client.request("GET", "/v1/groups").status == 200
            key = created(home, "first", "read")
            wait_until(lambda: http_client.request("GET", "/v1/groups").status == 403)
            assert http_client.request("GET", "/v1/groups").code == "MissingAuthenticationTokenException"
            with featurestore.connect(service.url, key) as connected:
                assert connected.feature_groups() == []
                revoke(home, "first")
                wait_until(lambda: refused(connected) == "UnrecognizedClientException")
            assert http_client.request("GET", "/v1/groups").status == 403
            assert http_client.request("GET", "/health").status == 200
        with Service(home, tmp_path / "log") as service:
            assert Http(service.port).request("GET", "/v1/groups").status == 403


def refused(connected: featurestore.Client) -> str | None:
    try:
        connected.feature_groups()
    except ServiceRefused as error:
        return error.code
    return None


class TestSts:
    def test_who_one_is(self, service: Service, home: Path, group: str) -> None:
        key = created(home, "identity", "read")
        wait_until(lambda: get(service.url, key, group) is None)
        found = client("sts", service.url, key).get_caller_identity()
        assert found["Account"] == "000000000000"
        assert found["Arn"] == "arn:aws:iam::000000000000:user/identity"
        assert found["UserId"] == key.access_key_id
        assert found["ResponseMetadata"]["RequestId"]
        assert client("sts", service.url, ROOT).get_caller_identity()["Arn"] == "arn:aws:iam::000000000000:root"

    def test_a_session_has_the_right_of_its_key(self, service: Service, home: Path, group: str) -> None:
        key = created(home, "parent", "write")
        wait_until(lambda: get(service.url, key, group) is None)
        before = datetime.datetime.now(datetime.UTC)
        answer = client("sts", service.url, key).assume_role(RoleArn=ROLE, RoleSessionName="nightly", DurationSeconds=900)
        ends_in = answer["Credentials"]["Expiration"] - before
        assert datetime.timedelta(seconds=890) < ends_in <= datetime.timedelta(seconds=960)
        assert answer["AssumedRoleUser"]["Arn"] == "arn:aws:sts::000000000000:assumed-role/training/nightly"
        assert answer["AssumedRoleUser"]["AssumedRoleId"].endswith(":nightly")
        given = answer["Credentials"]
        session = Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
        assert (get(service.url, session, group), put(service.url, session, group)) == (None, None)
        assert code_of(client("sagemaker", service.url, session).delete_feature_group, FeatureGroupName=group) == (
            "AccessDeniedException"
        )
        who = client("sts", service.url, session).get_caller_identity()
        assert (who["Arn"], who["UserId"]) == (
            answer["AssumedRoleUser"]["Arn"],
            answer["AssumedRoleUser"]["AssumedRoleId"],
        )
        assert get(service.url, Credentials(given["AccessKeyId"], given["SecretAccessKey"]), group) is not None

    def test_a_session_can_not_prolong_itself(self, service: Service) -> None:
        sts = client("sts", service.url, ROOT)
        first = sts.assume_role(RoleArn=ROLE, RoleSessionName="one", DurationSeconds=900)["Credentials"]
        session = Credentials(first["AccessKeyId"], first["SecretAccessKey"], first["SessionToken"])
        second = client("sts", service.url, session).assume_role(RoleArn=ROLE, RoleSessionName="two", DurationSeconds=43_200)
        assert second["Credentials"]["Expiration"] == first["Expiration"]

    def test_sessions_hold_in_every_process(self, service: Service, home: Path, group: str) -> None:
        session = assumed(client("sts", service.url, ROOT))
        with Service(home, home.parent / "log-2", **ADMIN) as other:
            assert get(other.url, session, group) is None

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            ({"RoleArn": "arn:aws:iam::1:role/x-too-short"}, "RoleArn"),
            ({"RoleArn": "arn:aws:iam::123456789012:user/somebody"}, "RoleArn"),
            ({"RoleSessionName": "a b"}, "RoleSessionName"),
            ({"DurationSeconds": 43_201}, "DurationSeconds"),
            ({"Policy": "{}"}, "Policy: expected no such member"),
            ({"PolicyArns": [{"arn": "arn:aws:iam::aws:policy/AdministratorAccess"}]}, "PolicyArns"),
            ({"SerialNumber": "arn:aws:iam::1:mfa/x", "TokenCode": "123456"}, "SerialNumber"),
        ],
    )
    def test_what_is_refused(self, service: Service, members: dict[str, Any], words: str) -> None:
        request = {"RoleArn": ROLE, "RoleSessionName": "nightly"} | members
        with pytest.raises(ClientError, match=words) as caught:
            client("sts", service.url, ROOT).assume_role(**request)
        assert caught.value.response["Error"]["Code"] == "ValidationError"
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400

    def test_what_is_ignored(self, service: Service) -> None:
        """Nothing of it narrows what a session may do."""
        assumed(client("sts", service.url, ROOT), ExternalId="external", Tags=[{"Key": "k", "Value": "v"}], SourceIdentity="me")

    def test_other_operations(self, service: Service) -> None:
        assert code_of(client("sts", service.url, ROOT).get_session_token) == "InvalidAction"

    def test_without_keys(self, tmp_path: Path) -> None:
        anybody = Credentials("whatever", "whatever")
        with Service(tmp_path / "home", tmp_path / "log", account_id="210987654321") as service:
            sts = client("sts", service.url, anybody)
            assert sts.get_caller_identity()["Account"] == "210987654321"
            session = assumed(sts)
            assert client("sagemaker", service.url, session).list_feature_groups()["FeatureGroupSummaries"] == []
            found = client("sts", service.url, session).get_caller_identity()
            assert found["Account"] == "210987654321"


class TestOwnClient:
    def test_all_of_its_requests_are_signed(self, service: Service) -> None:
        name = unique_name()
        frame = {"id": ["a b", "ü"], "at": ["2024-05-01T00:00:00Z"] * 2, "x": [1.0, 2.0]}
        features = {"id": "String", "at": "String", "x": "Fractional"}
        with featurestore.connect(service.url, ROOT) as connected:
            connected.create_feature_group(name, record_identifier="id", event_time="at", features=features)
            assert connected.ingest(name, _table(frame))["rows"] == 2
            connected.put_record(name, {"id": "c+d/e=f&g", "at": "2024-05-01T00:00:00Z", "x": 3.0})
            assert connected.get_record(name, "c+d/e=f&g", ["x"]) == {"x": 3.0}
            assert connected.batch_get_record(name, ["a b", "ü"], ["x"]) == [{"x": 1.0}, {"x": 2.0}]
            connected.delete_record(name, "ü", "2024-05-02T00:00:00Z")
            spine = _table({"id": ["a b"], "t": ["2024-06-01T00:00:00Z"]})
            made = connected.create_training_set(spine, [f"{name}.x"], event_time="t", keys={name: "id"})
            assert made.features.to_pylist() == [{f"{name}.x": 1.0}]
            assert connected.sql(f'SELECT count(*) AS n FROM latest."{name}"').to_pylist() == [{"n": 2}]
            assert len(connected.erase(name, "a b")["files"]) >= 1
            connected.flush()
            assert name in {item["name"] for item in connected.feature_groups()}
            connected.delete_feature_group(name)

    def test_credentials_of_the_environment(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        with featurestore.connect(service.url) as connected:
            assert refused(connected) == "UnrecognizedClientException"  # those that tests have
        session = assumed(client("sts", service.url, ROOT))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", session.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", session.secret_access_key)
        monkeypatch.setenv("AWS_SESSION_TOKEN", str(session.session_token))
        with featurestore.connect(service.url) as connected:
            assert refused(connected) is None
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ValidationFailed, match="AWS_SECRET_ACCESS_KEY: expected a value, as AWS_ACCESS_KEY_ID has one"):
            featurestore.connect(service.url)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with featurestore.connect(service.url) as connected:
            assert refused(connected) == "MissingAuthenticationTokenException"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own for the loopback names, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost", "-addext", names]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


class TestTls:
    def test_boto3_and_our_client(self, tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        cert, key = certificate
        with Service(tmp_path / "home", tmp_path / "log", **ADMIN, tls_cert_file=str(cert), tls_key_file=str(key)) as service:
            assert service.url.startswith("https://127.0.0.1:")
            url = service.url.replace("127.0.0.1", "localhost")
            sts = client("sts", url, ROOT, verify=str(cert))
            session = assumed(sts)
            assert client("sts", url, session, verify=str(cert)).get_caller_identity()["Account"] == "000000000000"
            runtime = client("sagemaker-featurestore-runtime", url, session, verify=str(cert))
            asked = {"FeatureGroupName": "nobody", "RecordIdentifierValueAsString": "k"}
            assert code_of(runtime.get_record, **asked) == "ResourceNotFound"
            s3 = client("s3", url, session, verify=str(cert))  # over TLS it sends chunks without signatures
            s3.create_bucket(Bucket="bucket")
            s3.put_object(Bucket="bucket", Key="a b/ü+(1).csv", Body=io.BytesIO(b"hello" * 1000))
            assert s3.get_object(Bucket="bucket", Key="a b/ü+(1).csv")["Body"].read() == b"hello" * 1000
            wrong = Credentials(ROOT.access_key_id, "another")
            assert code_of(client("sts", url, wrong, verify=str(cert)).get_caller_identity) == "SignatureDoesNotMatch"
            monkeypatch.setenv("SSL_CERT_FILE", str(cert))
            with featurestore.connect(url, ROOT) as connected:
                assert connected.feature_groups() == []
            with pytest.raises((OSError, http.client.HTTPException)):
                Http(service.port).request("GET", "/health")
        log = service.log.read_text()
        assert "graceful shutdown exceeded" not in log, "the service waited for clients that keep idle connections"
        assert "Traceback" not in log

    @pytest.mark.parametrize("broken", ["missing", "not PEM", "of another"])
    def test_a_certificate_that_is_none(self, tmp_path: Path, certificate: tuple[Path, Path], broken: str) -> None:
        cert, key = certificate
        other = tmp_path / "other.pem"
        if broken == "not PEM":
            other.write_text("hello")
        elif broken == "of another":
            cert, other = key, key
        settings = Settings.load({}, tls_cert_file=str(cert), tls_key_file=str(other))
        with pytest.raises(SettingsInvalid, match=f"FEATURESTORE_TLS_CERT_FILE: expected a readable PEM .*{cert}"):
            server.require_tls(settings)


def _arn(group: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:000000000000:feature-group/{group}"


def _table(columns: dict[str, list[Any]]) -> Any:
    return pa.table(columns)
