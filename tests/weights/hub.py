"""A server for tests that speaks the Hub's protocol as far as downloads need it."""

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Serves `files` (path -> bytes) as `/OWNER/NAME/resolve/REVISION/PATH`, which redirects to `/cdn/...`.

    Attributes that tests change: `cuts`, numbers of bytes after which the next answers break; `ranges`, whether ranges
    are understood; `careless`, whether `If-Range` is ignored;
    `linked`, whether the SHA-256 is stated; `statuses`, status codes of the next answers; `lie`, a
    stated SHA-256; `sized`, whether lengths are stated; `to`, the address of redirects.
    """

    def __init__(self, files):
        self.files, self.cuts, self.statuses, self.asked = dict(files), [], [], []
        self.ranges = self.linked = self.sized = True
        self.careless = False
        self.lie, self.to = "", ""

    def etag(self, path):
        return f'"{hashlib.sha256(self.files[path]).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    hub = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.hub.asked.append((self.path, self.headers.get("Range")))
        if self.hub.statuses:
            return self.send_error(self.hub.statuses.pop(0))
        match = re.fullmatch(r"/[\w.-]+/[\w.-]+/resolve/([\w.-]+)/(.+)", self.path)
        if match and match[2] in self.hub.files:
            return self.redirect(match[2])
        path = self.path.removeprefix("/cdn/")
        return self.send_file(path) if path in self.hub.files else self.send_error(404)

    def redirect(self, path):
        self.send_response(302)
        self.send_header("Location", self.hub.to or f"/cdn/{path}")
        self.send_header("X-Repo-Commit", "c0ffee")
        if self.hub.linked:
            self.send_header("X-Linked-Etag", f'"{self.hub.lie}"' if self.hub.lie else self.hub.etag(path))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def start(self, path):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.hub.careless or self.headers.get("If-Range") in (None, self.hub.etag(path))
        return int(asked[1]) if asked and self.hub.ranges and same else 0

    def send_file(self, path):
        data, start = self.hub.files[path], self.start(path)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.hub.ranges:
            self.send_header("ETag", self.hub.etag(path))
        if self.hub.sized:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[start : start + self.hub.cuts.pop(0)] if self.hub.cuts else data[start:])


@contextlib.contextmanager
def serving(files):
    """A hub on a port of its own, with its `address`, while the block runs."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
