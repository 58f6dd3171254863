"""Which operations a boto3 script has called, and which error codes came back: so that it can prove to have left none out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError


class Calls:
    """Listens to boto3 clients."""

    def __init__(self) -> None:
        self.succeeded: set[str] = set()
        self.codes: defaultdict[str, set[str]] = defaultdict(set)

    def watch(self, client: Any) -> Any:
        """`client`, whose calls are noted from now on."""
        client.meta.events.register("after-call", self._note)
        return client

    def _note(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        if "Error" in parsed:
            self.codes[model.name].add(parsed["Error"]["Code"])
        else:
            self.succeeded.add(model.name)

    def require(self, wanted: dict[str, set[str]]) -> None:
        """Every operation of `wanted` has succeeded, and has failed with every code named for it."""
        missing = sorted(set(wanted) - self.succeeded)
        assert not missing, f"never succeeded: {missing}"
        for operation, codes in wanted.items():
            assert codes <= self.codes[operation], f"{operation}: never refused with {codes - self.codes[operation]}"


def refused(call: Callable[..., Any], code: str, status: int, **members: Any) -> ClientError:
    """The error that `call` must raise, which has this code and HTTP status, a message and a request id."""
    try:
        answer = call(**members)
    except ClientError as caught:
        error = caught
    else:
        raise AssertionError(f"expected {code}, got the answer {answer}")
    metadata = error.response["ResponseMetadata"]
    got = error.response["Error"]["Code"], metadata["HTTPStatusCode"]
    assert got == (code, status), f"expected {code} ({status}), got {got}: {error}"
    assert metadata.get("RequestId"), error.response
    assert error.response["Error"]["Message"], error.response
    return error
