"""Streams: topics of users whose messages become records.

A message is one JSON object in UTF-8. Without a field map its members are features; with one, each feature is looked up by a
path of member names (`customer.id`), and members that no path names do not count. Numbers keep the digits they were sent
with; null, or a path that leads nowhere, is an absent feature.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from enum import StrEnum
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, TypeAlias

import msgspec

from featurestore.errors import Fault, ValidationFailed
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.record import FeaturePair
from featurestore.model.value import Value

NAME_PATTERN: Final = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,63}")
TOPIC_PATTERN: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
"""What Kafka takes."""
REASON_CHARS_MAX: Final = 1000


class StreamState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"


class Stream(msgspec.Struct, frozen=True):
    """A topic whose messages become records of a feature group.

    Attributes:
        stream_id: random; tells a stream from a later one of the same name.
        group: name of the feature group.
        dead_letters: topic for messages that can't become records.
        fields: feature to path in the message; empty: the members are the features.
        epoch: from 1; a replay begins the next one, in which every message counts again.
        start_ms: the epoch begins with messages of that time, milliseconds since 1970; None for the oldest there are.
        state: a paused stream is not read.
    """

    name: str
    topic: str
    group: str
    dead_letters: str
    stream_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    fields: dict[str, str] = {}
    epoch: int = 1
    start_ms: int | None = None
    state: StreamState = StreamState.RUNNING

    @property
    def consumer_group(self) -> str:
        """The Kafka consumer group whose committed offsets tell how far the stream has come."""
        return f"featurestore.{self.name}.{self.stream_id}.{self.epoch}"

    def source(self, partition: int) -> str:
        """The name of one partition as a source of changes, see `OnlineStore.apply_from`."""
        return f"{self.stream_id}/{self.epoch}/{partition}"


Decoder: TypeAlias = Callable[[bytes], list[FeaturePair]]
"""From the bytes of a message to the (feature, value) pairs of a record. Raises MessageFault."""


class MessageFault(Exception):
    """A message is no record. The text says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= REASON_CHARS_MAX else f"{reason[: REASON_CHARS_MAX - 3]}...")


def check_stream(stream: Stream, group: FeatureGroup) -> None:
    """
    Raises:
        ValidationFailed: names every member that is wrong.
    """
    faults = []
    if not NAME_PATTERN.fullmatch(stream.name):
        faults.append(Fault("name", "1 to 64 letters, digits and hyphens between them", stream.name))
    for member in ("topic", "dead_letters"):
        topic = getattr(stream, member)
        if not TOPIC_PATTERN.fullmatch(topic) or topic in (".", ".."):
            faults.append(Fault(member, "a topic name: 1 to 249 letters, digits, dots, hyphens and underscores", topic))
    if stream.dead_letters == stream.topic:
        faults.append(Fault("dead_letters", "another topic than the messages'", stream.topic))
    for feature, path in stream.fields.items():
        if group.feature(feature) is None:
            faults.append(Fault(f"fields.{feature}", f"a feature of {group.name!r}", feature))
        if not all(path.split(".")):
            faults.append(Fault(f"fields.{feature}", "member names with dots between them", path))
    faults += [
        Fault("fields", f"a path for {needed!r}, which every record needs")
        for needed in (group.record_identifier, group.event_time)
        if stream.fields and needed not in stream.fields
    ]
    if faults:
        raise ValidationFailed(faults)


def json_decoder(fields: Mapping[str, str]) -> Decoder:
    """A decoder for JSON messages; `fields` as of `Stream`."""
    paths = {feature: path.split(".") for feature, path in fields.items()}

    def decode(message: bytes) -> list[FeaturePair]:
        members = _object(message)
        found = {feature: _at(members, path) for feature, path in paths.items()} if paths else members
        return [(feature, _value(feature, value)) for feature, value in found.items() if value is not None]

    return decode


class _NumberError(ValueError):
    pass


def _no_number(text: str) -> Any:
    raise _NumberError(f"{text} is no JSON number")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise _NumberError(f"member {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return members


class _Number(str):
    """The text of a number, to be told from a text."""


_JSON: Final = JSONDecoder(object_pairs_hook=_members, parse_float=_Number, parse_int=_Number, parse_constant=_no_number)


def _object(message: bytes) -> dict[str, Any]:
    try:
        text = message.decode()
        found = _JSON.decode(text)
    except UnicodeDecodeError as error:
        raise MessageFault(f"no UTF-8: byte {error.start}") from error
    except (JSONDecodeError, _NumberError) as error:
        raise MessageFault(f"no JSON: {error}") from error
    except RecursionError as error:
        raise MessageFault("no JSON that is looked at: nested too deeply") from error
    if not isinstance(found, dict):
        raise MessageFault(f"a JSON object is expected, got {_kind(found)}")
    return found


def _at(members: Any, path: list[str]) -> Any:
    for name in path:
        if not isinstance(members, dict):
            return None
        members = members.get(name)
    return members


def _value(feature: str, value: Any) -> Value:
    if isinstance(value, list):
        return [_text(f"{feature}[{position}]", element) for position, element in enumerate(value)]
    return _text(feature, value)


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise MessageFault(f"{path}: expected a text, a number or a list of these, got {_kind(value)}")
    return str(value)


def _kind(value: Any) -> str:
    if isinstance(value, _Number):
        return "a number"
    return {dict: "an object", list: "a list", bool: "true or false", str: "a text"}.get(type(value), "null")
