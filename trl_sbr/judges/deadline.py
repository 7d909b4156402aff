# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A limit on how long a whole HTTP request takes: the timeouts of `requests` are for each piece of an answer."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


_thread = threading.local()


class _Watched:
    """Tells the deadline of its thread which socket a request went out on."""

    def request(self, *args, **kwargs):
        super().request(*args, **kwargs)
        if getattr(_thread, "sockets", None) is not None:
            _thread.sockets.append(self.sock)


class _WatchedHTTPConnection(_Watched, HTTPConnection):
    pass


class _WatchedHTTPSConnection(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection


class DeadlineAdapter(HTTPAdapter):
    """Adapter of a session whose requests [`deadline`] can end."""

    def init_poolmanager(self, *args, **kwargs):
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args, **kwargs):
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """
    Context in which what this thread asks for through a [`DeadlineAdapter`] ends, or is cut off.

    Args:
        seconds (`float`):
            Time from now until the connection is shut down. Who reads from it then gets an error of `requests`.
    """
    sockets: list[socket.socket] = []

    def shut_down():
        for one in sockets:
            with contextlib.suppress(OSError):  # closed already
                # Not `SSLSocket.shutdown`, which takes the encryption from under the reader
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    _thread.sockets = sockets
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _thread.sockets = None
