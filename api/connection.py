"""A client's connection, as uvicorn's httptools protocol serves it."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Closes an idle TLS connection at once when the service stops.

    A client that is not reading takes no part in ending the session; the service would wait for it as long as for a request.
    """

    def shutdown(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.transport.get_extra_info("ssl_object") is not None:
            self.transport.abort()
        else:
            super().shutdown()
