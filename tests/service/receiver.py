"""A real receiver of webhooks, which verifies signatures with the reference library of Standard Webhooks."""

import json
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


class Receiver:
    """What was received, and what is answered: the next of `statuses`, or the last one again."""

    def __init__(self, *statuses, headers=None, secret=SECRET, hold=None):
        self.statuses = list(statuses) or [204]
        self.headers = headers or {}
        self.hold = hold
        self.messages = []
        self.ids = []
        self.hosts = []
        self.arrived = threading.Semaphore(0)
        self._webhook = Webhook(secret)

    def receive(self, handler):
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        # Raises if the signature, the timestamp or a header is wrong: the sender then gets no answer.
        self._webhook.verify(body, dict(handler.headers))
        self.messages.append(json.loads(body))
        self.ids.append(handler.headers["webhook-id"])
        self.hosts.append(handler.headers["Host"])
        self.arrived.release()
        if self.hold is not None:
            self.hold.wait(30)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()


@contextmanager
def receiving(receiver, certificate=None):
    """Run a receiver on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            receiver.receive(self)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Say nothing of a sender that went away: some tests make it."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.port = server.server_port
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
