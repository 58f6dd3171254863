"""Every failure of the feature store, as one tree.

    FeatureStoreError
        ValidationFailed          bad input; names each field, what was expected and what was given
            SettingsInvalid       bad configuration
        FeatureGroupNotFound      no feature group (or feature) of that name
        RecordNotFound            no live record of that identifier, where one is needed
        FeatureGroupInUse         the name is taken
        StreamNotFound            no stream of that name
        StreamInUse               the name is taken
        LimitExceeded             a quota of the store is used up
        Conflict                  the write lost against a newer one
        BucketError               an operation on a bucket or an object of one
            NoSuchBucket          no bucket of that name
            NoSuchKey             no object of that key
            NoSuchUpload          no multipart upload of that id
            BucketNotEmpty        a bucket that still has objects can't be deleted
            ReadOnlyKey           the key belongs to the offline layout
            PreconditionFailed    the object is not the one that the request expects
            UploadRefused         what arrived is not what was announced; nothing was stored
        StoreUnavailable          a backing store did not answer; nothing is known to be written, repeating is safe
            OutboxFull            the offline writer is behind; nothing was written
            FileVanished          a data file was replaced while it was read
        StoreCorrupt              stored bytes contradict their own format
        QueryError                a query did not produce an answer
            QueryRefused          not a single SELECT over the allowed tables
            QueryFailed           the engine rejected or aborted it
            QueryTimeout          the deadline passed
            QueryStopped          somebody stopped it
            QueryTooLarge         the result passed its row or byte cap
        AuthenticationFailed      a request that does not prove who sends it
            SignatureMissing      it is not signed
            SignatureMalformed    what it says of its signature can't be read, or leaves out what must be signed
            AccessKeyUnknown      no key has that id, or it was revoked
            SessionTokenInvalid   the session token is not one of this store, or of another key
            SessionExpired        the session has ended
            SignatureMismatch     another secret key or another request was signed
            RequestTimeSkewed     signed too long ago, or in the future
            PresignedExpired      the presigned URL has ended
        AccessForbidden           the request is understood and not allowed
        AccessKeyNotFound         no access key of that name
        AccessKeyInUse            the name is taken
        ServiceRefused            a service that was called over HTTP answered with an error; carries that error's code

An error carries `code` (stable, the name used on the wire), `retryable` (whether the same call can succeed later) and the
fields its message is built from. HTTP statuses are the business of `api`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

GOT_CHARS_MAX = 80
"""Longest excerpt of an offending value that a message repeats."""

FAULTS_SHOWN_MAX = 10
"""Faults spelled out in one message; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the input.

    Attributes:
        path: where, as a client would write it: `Record[2].ValueAsString`, `rows[3].pm25`.
        expected: what would have been right.
        got: the offending value, or `None` when there is none to show (a missing member).
    """

    path: str
    expected: str
    got: object = None

    def __str__(self) -> str:
        if self.got is None:
            return f"{self.path}: expected {self.expected}"
        return f"{self.path}: expected {self.expected}, got {excerpt(self.got)}"


def excerpt(value: object) -> str:
    """`repr(value)`, cut to GOT_CHARS_MAX characters so that a message never carries a whole record."""
    text = repr(value[: GOT_CHARS_MAX + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= GOT_CHARS_MAX else f"{text[: GOT_CHARS_MAX - 3]}..."


class FeatureStoreError(Exception):
    """Root of the tree. Not raised itself."""

    code: ClassVar[str] = "InternalFailure"
    retryable: ClassVar[bool] = False


class ValidationFailed(FeatureStoreError):
    """The input is wrong and nothing was changed.

    Attributes:
        faults: every fault found, in input order; at least one.
        faults_total: how many there are when only the first ones are kept.
    """

    code = "ValidationError"

    def __init__(self, faults: Sequence[Fault], *, faults_total: int | None = None) -> None:
        self.faults = tuple(faults)
        self.faults_total = len(self.faults) if faults_total is None else faults_total
        shown = "; ".join(str(fault) for fault in self.faults[:FAULTS_SHOWN_MAX])
        hidden = self.faults_total - min(len(self.faults), FAULTS_SHOWN_MAX)
        super().__init__(f"{shown}; and {hidden} more" if hidden > 0 else shown)

    @classmethod
    def one(cls, path: str, expected: str, got: object = None) -> ValidationFailed:
        return cls([Fault(path, expected, got)])


class SettingsInvalid(ValidationFailed):
    """The configuration can't be used; the process refuses to start."""


class FeatureGroupNotFound(FeatureStoreError):
    """No such feature group, or no such feature in it."""

    code = "ResourceNotFound"

    def __init__(self, name: str, *, feature: str | None = None) -> None:
        self.name = name
        self.feature = feature
        where = f"feature group {name!r}"
        super().__init__(f"{where} does not exist" if feature is None else f"{where} has no feature {feature!r}")


class RecordNotFound(FeatureStoreError):
    """No live record of that identifier: never written, deleted or expired. Only for calls that change one: to readers it is no
    error.
    """

    code = "ResourceNotFound"

    def __init__(self, group: str, identifier: str) -> None:
        self.group = group
        self.identifier = identifier
        super().__init__(f"feature group {group!r} has no record {excerpt(identifier)}")


class FeatureGroupInUse(FeatureStoreError):
    """A feature group of that name exists already, or is being deleted."""

    code = "ResourceInUse"

    def __init__(self, name: str, detail: str = "exists already") -> None:
        self.name = name
        super().__init__(f"feature group {name!r} {detail}")


class StreamNotFound(FeatureStoreError):
    """No such stream."""

    code = "ResourceNotFound"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"stream {name!r} does not exist")


class StreamInUse(FeatureStoreError):
    """A stream of that name exists already."""

    code = "ResourceInUse"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"stream {name!r} exists already")


class LimitExceeded(FeatureStoreError):
    """A quota of the store is used up."""

    code = "ResourceLimitExceeded"

    def __init__(self, what: str, limit: int) -> None:
        self.what = what
        self.limit = limit
        super().__init__(f"{what}: at most {limit} are allowed")


class Conflict(FeatureStoreError):
    """The write is older than what is stored."""

    code = "ConflictException"


class BucketError(FeatureStoreError):
    """An operation on a bucket or an object of one was refused; nothing was changed. The codes are Amazon S3's."""

    code = "InvalidRequest"


class NoSuchBucket(BucketError):
    """There is no bucket of that name."""

    code = "NoSuchBucket"

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        super().__init__(f"bucket {excerpt(bucket)} does not exist")


class NoSuchKey(BucketError):
    """There is no object of that key."""

    code = "NoSuchKey"

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket = bucket
        self.key = key
        super().__init__(f"bucket {excerpt(bucket)} has no object {key!r}")


class NoSuchUpload(BucketError):
    """There is no multipart upload of that id: it never was, was aborted, or was abandoned for too long."""

    code = "NoSuchUpload"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"multipart upload {excerpt(upload_id)} does not exist")


class BucketNotEmpty(BucketError):
    """The bucket has objects, or belongs to the offline layout."""

    code = "BucketNotEmpty"

    def __init__(self, bucket: str, detail: str) -> None:
        super().__init__(f"bucket {excerpt(bucket)} can't be deleted: {detail}")


class ReadOnlyKey(BucketError):
    """The key is one of the offline layout, which only the feature store writes."""

    code = "AccessDenied"

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"{key!r} of bucket {excerpt(bucket)} belongs to the offline store, which can only be read here")


class PreconditionFailed(BucketError):
    """The object is not the one that the request expects, or there is one where none was expected."""

    code = "PreconditionFailed"

    def __init__(self, key: str, expected: str) -> None:
        super().__init__(f"{key!r}: expected {expected}")


class UploadRefused(BucketError):
    """What arrived is not what was announced, or more than is allowed; nothing was stored.

    Attributes:
        code: Amazon S3's, such as `BadDigest`, `InvalidPart`, `EntityTooLarge`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code  # type: ignore[misc]  # of the refusal, where the other classes have one each
        super().__init__(message)


class StoreUnavailable(FeatureStoreError):
    """A backing store did not answer. Nothing is known to be written; repeating the call is safe.

    Attributes:
        operation: what was tried.
        hint: the command or setting that repairs it, or empty.
        nothing_written: it is certain that nothing was: the store refused, or was never reached.
    """

    code = "ServiceUnavailable"
    retryable = True

    def __init__(self, operation: str, detail: str, *, hint: str = "", nothing_written: bool = False) -> None:
        self.operation = operation
        self.hint = hint
        self.nothing_written = nothing_written
        super().__init__(f"{operation}: {detail}" + (f" ({hint})" if hint else ""))


class OutboxFull(StoreUnavailable):
    """The outbox holds as many changes as it may; the write was refused rather than an older one dropped."""

    def __init__(self, entries: int, entries_max: int) -> None:
        self.entries = entries
        self.entries_max = entries_max
        super().__init__(
            "write",
            f"{entries} changes wait for the offline store, at most {entries_max} may",
            hint="the offline writer is behind; see `featurestore status`",
            nothing_written=True,
        )


class FileVanished(StoreUnavailable):
    """A data file was replaced by a newer version of the table while a query read it; planning anew finds the new one."""

    def __init__(self, operation: str, detail: str = "a data file was replaced meanwhile") -> None:
        super().__init__(operation, detail, hint="repeat the query")


class StoreCorrupt(FeatureStoreError):
    """Stored bytes contradict their own format; reading on would guess."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f"{what}: {detail}")


class QueryError(FeatureStoreError):
    """A query did not produce an answer."""

    code = "ValidationError"


class QueryRefused(QueryError):
    """The statement is not one that is allowed: a single SELECT over feature groups."""


class QueryFailed(QueryError):
    """The engine rejected or aborted the statement; the message is the engine's."""


class QueryTimeout(QueryError):
    """The statement was stopped at its deadline."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"the query was stopped after {timeout_s:g} s")


class QueryStopped(QueryError):
    """The statement was stopped by whoever asked for it."""

    def __init__(self) -> None:
        super().__init__("the query was stopped")


class QueryTooLarge(QueryError):
    """The result passed its cap; nothing of it is returned, since a cut result would look complete."""

    def __init__(self, what: str, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the result has more than {limit} {what}; narrow the query or add a LIMIT")


class AuthenticationFailed(FeatureStoreError):
    """A request that does not prove who sends it. Not raised itself.

    The codes are those that AWS's JSON services answer with; S3 and STS have words of their own (`api.wire`).
    """

    code = "UnrecognizedClientException"


class SignatureMissing(AuthenticationFailed):
    """The request is not signed, and the store has access keys."""

    code = "MissingAuthenticationTokenException"

    def __init__(self) -> None:
        super().__init__("the request is not signed: expected AWS Signature Version 4 by a key of `featurestore keys`")


class SignatureMalformed(AuthenticationFailed):
    """What the request says of its signature can't be read, or leaves out what must be signed."""

    code = "IncompleteSignatureException"


class AccessKeyUnknown(AuthenticationFailed):
    """No access key has that id, or it was revoked."""

    def __init__(self, access_key_id: str) -> None:
        self.access_key_id = access_key_id
        super().__init__(f"access key id {excerpt(access_key_id)} is not one of this store's, or it was revoked")


class SessionTokenInvalid(AuthenticationFailed):
    """The session token is not one that this store gave out, or belongs to another access key id."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"session token: {detail}")


class SessionExpired(AuthenticationFailed):
    """The session has ended."""

    code = "ExpiredTokenException"

    def __init__(self) -> None:
        super().__init__("the session that these credentials are of has ended; assume the role again")


class SignatureMismatch(AuthenticationFailed):
    """Another secret key was used, or another request was signed."""

    code = "InvalidSignatureException"

    def __init__(self, detail: str = "it is of another request or of another secret key") -> None:
        super().__init__(f"the signature does not match: {detail}")


class RequestTimeSkewed(AuthenticationFailed):
    """The request was signed too long ago, or in the future."""

    code = "InvalidSignatureException"

    def __init__(self, signed_at: str, now: str, skew_s_max: int) -> None:
        super().__init__(
            f"the request was signed at {signed_at}, and here it is {now}: expected at most {skew_s_max // 60} minutes between"
        )


class PresignedExpired(AuthenticationFailed):
    """The time that a presigned URL was made for is over."""

    code = "InvalidSignatureException"

    def __init__(self, signed_at: str, expires_s: int) -> None:
        super().__init__(f"the presigned URL of {signed_at} was good for {expires_s:,} s and has expired")


class AccessForbidden(FeatureStoreError):
    """The request is understood and not allowed."""

    code = "AccessForbidden"


class AccessKeyNotFound(FeatureStoreError):
    """No access key of that name."""

    code = "ResourceNotFound"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"access key {name!r} does not exist")


class AccessKeyInUse(FeatureStoreError):
    """An access key of that name exists already."""

    code = "ResourceInUse"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"access key {name!r} exists already; revoke it first, or take another name")


class ServiceRefused(FeatureStoreError):
    """A service that was called over HTTP answered with an error.

    Attributes:
        code: the service's error code, such as `ValidationError` or `ResourceNotFound`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code  # type: ignore[misc]  # of the answer, where the other classes have one each
        super().__init__(f"{code}: {message}")
