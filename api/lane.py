"""The record lane: the usual record requests are answered on the connection itself; all others go on to the application."""

from __future__ import annotations

from api.app import Service
from api.connection import Connection


def lane_of(service: Service) -> type[Connection]:
    """The protocol class, for uvicorn's `http` setting, of connections to a service."""

    class RecordLane(Connection):
        _service = service

    return RecordLane
