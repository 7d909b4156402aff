# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A loopback server with OpenAI's interface, and faults that servers have."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint(ThreadingHTTPServer):
    """
    Answers a chat or completion request by `answer(body)`, and says that its prompt has `count_tokens(body)` tokens.

    Before that, it makes the next of `faults`, callables that take the handler.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.answer = lambda body: ""
        self.count_tokens = lambda body: None
        self.faults, self.requests, self.times = [], [], []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        endpoint = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append((self.path, body, self.headers.get("Authorization")))
            endpoint.times.append(time.monotonic())
            endpoint.under_way += 1
            endpoint.most_under_way = max(endpoint.most_under_way, endpoint.under_way)
            fault = endpoint.faults.pop(0) if endpoint.faults else None
        try:
            if fault is not None:
                fault(self)
            elif self.path == "/v1/completions":
                self.reply({"choices": [{"text": endpoint.answer(body)}]})
            else:
                message = {"role": "assistant", "content": endpoint.answer(body)}
                self.reply(
                    {"choices": [{"message": message}], "usage": {"prompt_tokens": endpoint.count_tokens(body)}}
                )
        finally:
            with endpoint.lock:
                endpoint.under_way -= 1

    def reply(self, data, status=200, headers=None, length=None):
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def status(code, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.reply({"error": {"message": f"fault {code}"}}, code, headers)


def drop(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def truncate(handler):
    handler.reply(b'{"choices": [{"mess', length=500)
    drop(handler)


def stall(handler):
    time.sleep(1.5)
    drop(handler)
