"""Requests signed by botocore, taken apart so that they can be changed before they are sent."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from botocore import auth, awsrequest
from botocore.credentials import Credentials

from featurestore.access.sigv4 import Request


@dataclass(frozen=True)
class Sent:
    """A request with its body, as it arrives."""

    request: Request
    body: bytes = b""

    def header(self, name: bytes) -> bytes:
        return dict(self.request.headers)[name]

    def with_headers(self, *changed: tuple[bytes, bytes]) -> Sent:
        """Headers replaced, or added."""
        names = {name for name, _ in changed}
        return self.altered(headers=[*self._without(names), *changed])

    def without_headers(self, *names: bytes) -> Sent:
        return self.altered(headers=self._without(set(names)))

    def altered(self, *, body: bytes | None = None, **members: Any) -> Sent:
        """Parts of the request replaced, with the signature left as it is."""
        parts = {name: members.pop(name, getattr(self.request, name)) for name in ("method", "path", "query", "headers")}
        assert not members, f"a request has no {members}"
        return replace(self, request=Request(**parts), body=self.body if body is None else body)

    def _without(self, names: set[bytes]) -> Sequence[tuple[bytes, bytes]]:
        return [item for item in self.request.headers if item[0] not in names]


def signed_by_botocore(
    method: str,
    path: str,
    *,
    base: str,
    key_id: str,
    secret: str,
    token: str | None = None,
    query: str = "",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    service: str = "sagemaker",
    region: str = "us-east-1",
    presigned_s: int | None = None,
    age_s: int = 0,
    streaming: bool = False,
) -> Sent:
    """What botocore makes of a request. `path` and `query` are percent-encoded already.

    Args:
        presigned_s: life of a presigned URL; None signs in the header.
        age_s: how long ago it is signed.
        streaming: S3 over TLS: the body's hash is not signed.
    """
    url = base + path + (f"?{query}" if query else "")
    request = awsrequest.AWSRequest(method, url, headers=dict(headers or {}), data=body)
    if streaming:
        request.context["checksum"] = {
            "request_algorithm": {"in": "trailer", "algorithm": "crc32", "name": "x-amz-checksum-crc32"}
        }
    credentials = Credentials(key_id, secret, token)
    if presigned_s is None:
        signer = (auth.S3SigV4Auth if service == "s3" else auth.SigV4Auth)(credentials, service, region)
    else:
        kind = auth.S3SigV4QueryAuth if service == "s3" else auth.SigV4QueryAuth
        signer = kind(credentials, service, region, expires=presigned_s)
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    with mock.patch.object(auth, "get_current_datetime", return_value=then):
        signer.add_auth(request)
    parts = urlsplit(request.url)
    sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    host = urlsplit(base).netloc.encode()
    return Sent(Request(method, parts.path.encode(), parts.query.encode(), [(b"host", host), *sent]), body)
