"""Objects in a bucket of Amazon S3, or of any service that speaks its protocol (`s3://`), through obstore.

Everything rests on one request: a PUT with `If-None-Match: *`, which the service refuses (412) when the object exists. Its
answer can be lost, and the repeated request is then refused because of the first one. So each put carries an id of its own
as metadata of the object, and who is refused looks whose object it is.

A 409 says that another request for the key was under way and that nothing may have come of either; obstore reports it as a
412. The look tells them apart, too: no object, no winner, try again
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html).
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import urlsplit

from featurestore.errors import FileVanished, StoreUnavailable
from featurestore.model.key_order import beyond
from featurestore.offline.cache import ObjectCache
from featurestore.offline.protocol import ObjectInfo

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Store

TEMPORARY: Final = "_tmp"
WRITE_ID: Final = "write-id"
"""Metadata of each object, `x-amz-meta-write-id`: which put made it."""
REGION: Final = "us-east-1"

CONNECT_S_MAX: Final = 5
READ_S_MAX: Final = 30
"""How long an answer, or its next piece, may take."""
ANSWER_S_MAX: Final = 600
"""How long all of an answer may take: 256 MiB at 4 Mbit/s."""
CREATE_S_MAX: Final = 120
"""How long a put may take: 256 MiB at 18 Mbit/s."""

RETRIES_MAX: Final = 5
RETRY_WAIT_S: Final = 0.1
"""Before the first retry; each further one waits about twice as long, all of them together 3 seconds."""
RETRY_S_MAX: Final = 60
"""No retry is begun later than this after the first try."""

CREDENTIALS_S: Final = 60
"""After how long the chain is asked again: it renews temporary credentials minutes before they expire, and caches them."""
RACERS: Final = 8
"""Concurrent puts that a service must keep apart at start."""
CHUNK_BYTES: Final = 1 << 20
LIST_KEYS: Final = 1000
OPENINGS_MAX: Final = 5

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]+)</Message>")
_LACKING: Final = ("501 Not Implemented", "<Code>NotImplemented</Code>")


class S3ObjectStore:
    """See `offline.protocol.ObjectStore`. Credentials and region come from boto3's chain (environment, profiles, roles).

    Of concurrent puts of one key exactly one returns True, also when they write equal bytes and when answers are lost.

    Args:
        prefix: without leading and trailing `/`; empty for the whole bucket.
        endpoint: `http[s]://host[:port]` of the service; None for Amazon S3.
        cache, cache_bytes_max: see `ObjectCache`.

    Raises:
        StoreUnavailable: the extra `s3` is not installed; there are no credentials; the endpoint does not answer; the bucket
            does not exist or access to it is denied; the service can't put an object only if it is absent.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None, cache: Path, cache_bytes_max: int) -> None:
        self._bucket = bucket
        self._where = f"s3://{bucket}/{prefix}".rstrip("/")
        try:
            from obstore import exceptions
        except ImportError as error:
            raise _extra_missing(error) from error
        self._errors: Any = exceptions
        self._open(prefix, endpoint)
        self._probe()
        origin = "\0".join((self._endpoint, bucket, prefix))
        self._cache = ObjectCache(cache, origin, cache_bytes_max, self._download, self._exists)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._create(key, data, f"write {key}")

    def put_file_if_absent(self, key: str, path: Path) -> bool:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreUnavailable(f"write {key}", str(error)) from error
        return self._create(key, data, f"write {key}")

    def get(self, key: str) -> bytes | None:
        try:
            return self._store.get(key).bytes().to_bytes()
        except FileNotFoundError as error:
            self._refuse_missing_bucket(f"read {key}", error)
            return None
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(f"read {key}", error) from error

    def list(self, prefix: str) -> Sequence[str]:
        return [info.key for info in self.scan(prefix)]

    def scan(self, prefix: str) -> Sequence[ObjectInfo]:
        try:
            found = [_info(meta) for chunk in self._store.list(prefix, chunk_size=LIST_KEYS) for meta in chunk]
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(f"list {prefix}", error) from error
        return sorted(found, key=lambda info: info.key)

    def page(self, prefix: str, *, after: str, limit: int) -> Sequence[ObjectInfo]:
        # obstore's prefixes are whole segments; begins of names are sorted out here.
        folder = prefix.rpartition("/")[0]
        found: list[ObjectInfo] = []
        try:
            for chunk in self._store.list(folder or None, offset=after or None, chunk_size=LIST_KEYS):
                found.extend(_info(meta) for meta in chunk if meta["path"].startswith(prefix) and meta["path"] > after)
                if len(found) >= limit or (chunk and chunk[-1]["path"] > beyond(prefix)):
                    break
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(f"list {prefix}", error) from error
        return found[:limit]

    def info(self, key: str) -> ObjectInfo | None:
        try:
            return _info(self._store.head(key))
        except FileNotFoundError as error:
            self._refuse_missing_bucket(f"read {key}", error)
            return None
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(f"read {key}", error) from error

    def open(self, key: str) -> BinaryIO | None:
        for _ in range(OPENINGS_MAX):
            try:
                (path,) = self.paths([key])
                return open(path, "rb")
            except FileVanished:
                return None
            except FileNotFoundError:  # its copy was deleted to save space
                continue
            except OSError as error:
                raise StoreUnavailable(f"read {key}", str(error), hint="see the folder `cache` of the home folder") from error
        raise StoreUnavailable(f"read {key}", "its copy is deleted all the time", hint="see FEATURESTORE_OFFLINE_CACHE_BYTES_MAX")

    def move_if_absent(self, source: str, target: str) -> bool:
        operation = f"move {source} to {target}"
        data = self.get(source)
        if data is None:
            raise StoreUnavailable(operation, f"{source} does not exist", hint=self._hint)
        return self._create(target, data, operation)

    def delete(self, key: str) -> None:
        try:
            self._store.delete(key)
        except FileNotFoundError as error:
            self._refuse_missing_bucket(f"delete {key}", error)
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(f"delete {key}", error) from error
        self._cache.evict(key)

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        return self._cache.paths(keys)

    def remove_leftovers(self) -> None:
        self._cache.remove_leftovers()

    def url(self, key: str) -> str:
        return f"{self._where}/{key}"

    def _open(self, prefix: str, endpoint: str | None) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError
            from obstore.auth.boto3 import Boto3CredentialProvider
            from obstore.store import S3Store
        except ImportError as error:
            raise _extra_missing(error) from error
        try:
            session = boto3.Session()
            if session.get_credentials() is None:
                raise StoreUnavailable("open offline store", "no AWS credentials were found", hint=_CREDENTIALS_HINT)
            credentials = Boto3CredentialProvider(session, ttl=timedelta(seconds=CREDENTIALS_S))
        except BotoCoreError as error:
            raise StoreUnavailable("open offline store", str(error), hint=_CREDENTIALS_HINT) from error
        region = session.region_name or REGION
        self._endpoint = amazon_endpoint(region) if endpoint is None else _checked(endpoint)
        self._hint = f"see FEATURESTORE_OFFLINE_URL, now {self._where} at {self._endpoint}"

        def client(options: ClientConfig, retries: RetryConfig) -> S3Store:
            # Addresses and styles are given one by one, since obstore takes those that are not from the environment, where
            # AWS_ENDPOINT_URL may name the feature store itself.
            return S3Store(
                self._bucket,
                prefix=prefix or None,
                config={
                    "aws_endpoint_url_s3": self._endpoint,
                    "endpoint": self._endpoint,
                    "region": region,
                    "virtual_hosted_style_request": False,
                    "conditional_put": "etag",
                    "disable_bulk_delete": True,
                },
                client_options={
                    "allow_http": self._endpoint.startswith("http:"),
                    "connect_timeout": timedelta(seconds=CONNECT_S_MAX),
                    **options,
                },
                retry_config=retries,
                credential_provider=credentials,
            )

        self._store = client(
            {"read_timeout": timedelta(seconds=READ_S_MAX), "timeout": timedelta(seconds=ANSWER_S_MAX)},
            {
                "max_retries": RETRIES_MAX,
                "retry_timeout": timedelta(seconds=RETRY_S_MAX),
                "backoff": {"init_backoff": timedelta(seconds=RETRY_WAIT_S), "base": 2},
            },
        )
        self._creating_store = client({"timeout": timedelta(seconds=CREATE_S_MAX)}, {"max_retries": 0})

    def _create(self, key: str, data: bytes, operation: str) -> bool:
        """Put an object if it is absent; whether this very call has made it, whatever became of the answers."""
        write_id = uuid.uuid4().hex
        retry_until_s = time.monotonic() + RETRY_S_MAX
        failure: StoreUnavailable | None = None
        for attempt in range(RETRIES_MAX + 1):
            if attempt:
                if time.monotonic() > retry_until_s:
                    break
                time.sleep(RETRY_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - spreads retries only
            try:
                self._creating_store.put(key, data, mode="create", attributes={WRITE_ID: write_id}, use_multipart=False)
            except self._errors.AlreadyExistsError as error:
                maker = self._write_id(key, operation)
                if maker is not None:
                    return maker == write_id
                failure = self._unavailable(operation, error)
            except self._errors.GenericError as error:
                failure = self._unavailable(operation, error)
                failure.__cause__ = error
            except (self._errors.BaseError, FileNotFoundError, ValueError) as error:
                raise self._unavailable(operation, error) from error
            else:
                return True
        assert failure is not None
        raise failure

    def _write_id(self, key: str, operation: str) -> str | None:
        """Which put made an object: empty if it was none of ours, None if there is no object."""
        try:
            return self._store.get(key, options={"head": True}).attributes.get(WRITE_ID, "")
        except FileNotFoundError:
            return None
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(operation, error) from error

    def _exists(self, key: str) -> bool:
        return self._write_id(key, f"read {key}") is not None

    def _download(self, key: str, file: BinaryIO) -> None:
        operation = f"read {key}"
        written = 0
        try:
            answer = self._store.get(key)
            size = answer.meta["size"]
            for chunk in answer.stream(CHUNK_BYTES):
                written += file.write(chunk)
        except FileNotFoundError as error:
            self._refuse_missing_bucket(operation, error)
            raise FileVanished("read offline store", f"{key} does not exist (any more)") from error
        except (self._errors.BaseError, ValueError) as error:
            raise self._unavailable(operation, error) from error
        if written != size:
            raise StoreUnavailable(operation, f"{written} of {size} bytes arrived", hint=self._hint)

    def _probe(self) -> None:
        """Put one object twice, and another one several times at once. A service that takes more than one of them would lose
        acknowledged writes.
        """
        operation = "open offline store"
        lacking = f"{self._endpoint} lacks put-if-absent (PUT with If-None-Match: *), which keeps concurrent writers apart"
        key = f"{TEMPORARY}/probe-{uuid.uuid4().hex}"
        try:
            made = self._create(key, b"first", operation)
        except StoreUnavailable as error:
            if any(sign in str(error.__cause__) for sign in _LACKING):
                raise StoreUnavailable(operation, lacking, hint=self._hint) from error
            raise
        try:
            if self._create(key, b"second", operation):
                raise StoreUnavailable(operation, lacking, hint=self._hint)
            if not made or not self._write_id(key, operation):
                raise StoreUnavailable(operation, f"{self._endpoint} lacks metadata of objects (x-amz-meta-)", hint=self._hint)
        finally:
            with suppress(self._errors.BaseError):  # what stays under _tmp is no data
                self._store.delete(key)
        key = f"{TEMPORARY}/race-{uuid.uuid4().hex}"
        try:
            with ThreadPoolExecutor(RACERS) as racers:
                made_by = list(racers.map(lambda number: self._create(key, b"%d" % number, operation), range(RACERS)))
            if sum(made_by) != 1:
                detail = f"{self._endpoint} took {sum(made_by)} of {RACERS} concurrent puts of one object with If-None-Match: *"
                raise StoreUnavailable(operation, f"{detail}; it must refuse all but one", hint=self._hint)
        finally:
            with suppress(self._errors.BaseError):
                self._store.delete(key)

    def _refuse_missing_bucket(self, operation: str, error: FileNotFoundError) -> None:
        """A missing object is an answer; a missing bucket is not, though the status is the same."""
        if "<Code>NoSuchBucket</Code>" in str(error):
            raise self._unavailable(operation, error) from error

    def _unavailable(self, operation: str, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(operation, self._explained(error), hint=self._hint)

    def _explained(self, error: Exception) -> str:
        """What the service said, without the rest of its answer: parts of the signed request can be in that."""
        text = str(error)
        said = [found[1] for found in (_CODE.search(text), _MESSAGE.search(text)) if found is not None]
        status = text.partition("Debug source")[0].partition("<")[0].strip().rstrip(":")
        detail = f"{status}: {', '.join(said)}" if said else status
        if "NoSuchBucket" in said or (isinstance(error, FileNotFoundError) and not said):
            return f"bucket {self._bucket} does not exist: {detail}"
        if isinstance(error, self._errors.PermissionDeniedError | self._errors.UnauthenticatedError):
            return f"access to bucket {self._bucket} is denied: {detail}"
        if "kind: Connect" in text:
            return f"{self._endpoint} can't be reached: {detail}"
        return detail


def _info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], (meta["last_modified"] - _EPOCH) // _MICROSECOND)


_CREDENTIALS_HINT: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"


def _extra_missing(error: ImportError) -> StoreUnavailable:
    return StoreUnavailable("open offline store", f"s3:// needs packages: {error}", hint="pip install featurestore[s3]")


def amazon_endpoint(region: str) -> str:
    """The address of Amazon S3 in a region (https://docs.aws.amazon.com/general/latest/gr/s3.html)."""
    return f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        # The endpoint itself is not repeated: somebody may have put a password into it.
        raise StoreUnavailable("open offline store", "expected http[s]://host[:port]", hint="see AWS_ENDPOINT_URL_S3")
    return endpoint.rstrip("/")
