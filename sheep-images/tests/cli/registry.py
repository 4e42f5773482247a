"""A registry between a client and a real one, which counts, breaks off, lies and asks for tokens as the file `mode` says (JSON).

registry.py DIR UPSTREAM-PORT: two servers on loopback; their ports are written to DIR/ports when both listen: the registry, and another
host, to which blobs may be redirected. Each request is a line of JSON in DIR/log.
"""
import base64, http.client, json, os, select, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

DIR, UPSTREAM = sys.argv[1], int(sys.argv[2])
LOCK = threading.Lock()
COUNTS = {}
TOKENS = {}
UPLOADS = {}
ASKED = []


def mode():
    try:
        with open(os.path.join(DIR, "mode")) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def since():
    """Which mode it is that was set."""
    return os.stat(os.path.join(DIR, "mode")).st_mtime_ns


def log(entry, begun):
    # What was asked in another mode, and ends only now, is not of this one.
    if begun != since():
        return
    with LOCK, open(os.path.join(DIR, "log"), "a") as file:
        file.write(json.dumps(entry) + "\n")


def count(what):
    """How often this was so since the mode was set."""
    with LOCK:
        key = (what, since())
        COUNTS[key] = COUNTS.get(key, 0) + 1
        return COUNTS[key]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    elsewhere = False

    def log_message(self, *_):
        pass

    def plain(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def token(self, m):
        query = parse_qs(urlsplit(self.path).query)
        want = "Basic " + base64.b64encode(m["token"].encode()).decode()
        got = self.headers.get("Authorization")
        if self.command == "POST":
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            query, got = form, want if form.get("refresh_token") == ["refresh"] else None
        if got is not None and got != want or got is None and not m.get("anonymous"):
            return self.plain(401, body=b'{"details":"incorrect username or password"}')
        token = "token%d" % (len(TOKENS) + 1)
        TOKENS[token] = {"scope": query.get("scope", []), "left": m.get("uses", 1 << 30)}
        self.plain(200, body=json.dumps({"access_token": token}).encode())

    def let_in(self, m):
        got = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        token = TOKENS.get(got)
        name = self.path.split("/blobs/")[0].split("/manifests/")[0].split("/tags/")[0].removeprefix("/v2/")
        action = "pull" if self.command in ("GET", "HEAD") else "push"
        fits = lambda s: s.startswith("repository:%s:" % name) and action in s.rsplit(":", 1)[1].split(",")
        if token and token["left"] > 0 and (not name or any(fits(s) for scope in token["scope"] for s in scope.split(" "))):
            token["left"] -= 1
            return True
        realm = 'Bearer realm="http://%s/token",service="here"' % self.headers["Host"]
        if name:
            realm += ',scope="repository:%s:%s"' % (name, action if action == "pull" else "pull,push")
        self.plain(401, [("WWW-Authenticate", realm)])
        return False

    def do(self):
        m, begun = mode(), since()
        is_blob = "/blobs/sha256:" in self.path
        ASKED.append((begun, self.path))
        entry = {"method": self.command, "path": self.path, "range": self.headers.get("Range"), "sent": 0, "elsewhere": self.elsewhere,
                 "authorization": self.headers.get("Authorization")}
        try:
            if "token" in m and not self.elsewhere:
                if urlsplit(self.path).path == "/token":
                    return self.token(m)
                if not self.let_in(m):
                    entry["refused"] = True
                    return
            if "basic" in m and not self.elsewhere:
                if self.headers.get("Authorization") != "Basic " + base64.b64encode(m["basic"].encode()).decode():
                    entry["refused"] = True
                    return self.plain(401, [("WWW-Authenticate", 'Basic realm="here"')])
            if "hold" in m and m["hold"]["path"] in self.path:
                # Not answered before the other is asked for.
                for _ in range(400):
                    if any(when == begun and m["hold"]["until"] in path for when, path in list(ASKED)):
                        break
                    time.sleep(0.05)
                else:
                    return self.plain(404)
            if count("request") <= m.get("fail", 0):
                return self.plain(m.get("status", 503), [("Retry-After", str(m["after"]))] if "after" in m else [])
            if "say" in m and m["say"]["path"] in self.path and m["say"].get("unless", "\n") not in self.path:
                body = m["say"].get("body", "").encode()
                return self.plain(m["say"].get("status", 200), m["say"].get("headers", {}).items(), body)
            if m.get("redirect") and is_blob and not self.elsewhere and self.command == "GET":
                return self.plain(307, [("Location", m["redirect"].replace("PORT", str(PORTS[1])) + self.path)])
            if m.get("uploads") and "/blobs/uploads/" in self.path:
                return self.upload(m, entry)
            self.forward(m, is_blob, entry)
        finally:
            log(entry, begun)

    def upload(self, m, entry):
        """Uploads that can be gone on with, as the specification has them and docker-registry has not."""
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "POST":
            at = url.path + str(len(UPLOADS))
            UPLOADS[at] = bytearray()
            return self.plain(202, [("Location", at), ("Range", "0-0")])
        at, has = url.path, UPLOADS[url.path]
        where = [("Location", at), ("Range", "0-%d" % max(len(has) - 1, 0))]
        if self.command == "GET":
            return self.plain(204, where)
        said = self.headers.get("Content-Range")
        if said and int(said.split("-")[0]) != len(has) or not said and self.command == "PATCH" and has:
            return self.plain(416, where)
        cut = m["cutupload"] if self.command == "PATCH" and count("cutupload") <= m["cuts"] else None
        while length > 0 and (piece := self.rfile.read(min(length, 65536))):
            has += piece
            length -= len(piece)
            entry["received"] = entry.get("received", 0) + len(piece)
            if cut is not None and entry["received"] >= cut:
                self.close_connection = True
                return self.connection.shutdown(2)
        if self.command == "PATCH":
            return self.plain(202, [("Location", at), ("Range", "0-%d" % (len(has) - 1))])
        upstream = http.client.HTTPConnection("127.0.0.1", UPSTREAM)
        upstream.request("POST", at[: at.rindex("/") + 1])
        answer = upstream.getresponse()
        answer.read()
        upstream.request("PUT", answer.headers["Location"] + "&" + url.query, bytes(has))
        answer = upstream.getresponse()
        self.plain(answer.status, [], answer.read())

    def forward(self, m, is_blob, entry):
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "authorization", "connection")}
        headers["Host"] = self.headers["Host"] if not self.elsewhere else "127.0.0.1"
        if "token" in m:
            headers["X-Forwarded-Proto"] = "http"
        length = int(self.headers.get("Content-Length") or 0)
        if m.get("norange"):
            headers.pop("Range", None)
        cut = m.get("cutupload") if self.command == "PATCH" else None
        if cut is not None:
            cuts, patch = m.get("cuts", 1 << 30), count("cutupload")
            if not (patch in cuts if isinstance(cuts, list) else patch <= cuts):
                cut = None
        held = None
        if m.get("buffered"):
            # As proxies do: nothing is sent on before all of it is there.
            held = self.rfile.read(length if cut is None else min(cut, length))
            entry["received"] = len(held)
            if len(held) < length:
                self.close_connection = True
                return self.connection.shutdown(2)
        upstream = http.client.HTTPConnection("127.0.0.1", UPSTREAM)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        received = 0
        if held is not None:
            upstream.send(held)
            received = length
        while received < length:
            piece = self.rfile.read(min(65536, length - received, (cut or length) - received))
            if not piece:
                break
            upstream.send(piece)
            received += len(piece)
            entry["received"] = received
            if cut is not None and received >= cut:
                upstream.sock.shutdown(2)
                time.sleep(0.2)
                self.close_connection = True
                self.connection.shutdown(2)
                return
        answer = upstream.getresponse()
        body_is_sent = self.command != "HEAD" and answer.status not in (204, 304)
        self.send_response(answer.status)
        size = int(answer.headers.get("Content-Length") or 0)
        lie = is_blob and size > m.get("above", 0) and self.command == "GET" and answer.status < 300
        for name, value in answer.headers.items():
            if name.lower() in ("connection", "transfer-encoding", "date"):
                continue
            if lie and name.lower() == "content-length" and ("longer" in m or "shorter" in m or "unsaid" in m):
                if "unsaid" in m:
                    continue
                value = str(size + m.get("longer", 0) - m.get("shorter", 0))
            if name.lower() == "content-range" and "wrongrange" in m:
                value = "bytes 0-" + value.split("-", 1)[1]
            if name.lower() == "location" and "uploadsgo" in m and not self.elsewhere:
                value = m["uploadsgo"].replace("PORT", str(PORTS[1])) + value
            self.send_header(name, value)
        if lie and "unsaid" in m or not answer.headers.get("Content-Length") and body_is_sent:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if not body_is_sent:
            return
        cut = m.get("cut") if lie else None
        if cut is not None and count("cut") > m.get("cuts", 1 << 30):
            cut = m.get("then")
        stall = m.get("stall") if lie and count("stall") <= m.get("stalls", 1 << 30) else None
        flip = m.get("flip") if lie else None
        if "flipmanifest" in m and "/manifests/" in self.path:
            flip = 1
        while piece := answer.read(65536):
            if cut is not None:
                piece = piece[: cut - entry["sent"]]
            if flip is not None and entry["sent"] <= flip < entry["sent"] + len(piece):
                at = flip - entry["sent"]
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            self.wfile.write(piece)
            entry["sent"] += len(piece)
            if m.get("slow") and is_blob:
                self.wfile.flush()
                time.sleep(m["slow"])
                # What a registry that is killed had written already would still come.
                socket.create_connection(("127.0.0.1", UPSTREAM)).close()
            if stall is not None and entry["sent"] >= stall:
                self.wfile.flush()
                # Until the client gives up: noted later, it would be taken for one of another mode.
                select.select([self.connection], [], [], 8)
                break
            if cut is not None and entry["sent"] >= cut:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
        if lie and m.get("longer") or lie and m.get("extra"):
            self.wfile.write(b"x" * m.get("longer", m.get("extra", 0)))

    def handle(self):
        try:
            super().handle()
        except (OSError, http.client.HTTPException):
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do


class Elsewhere(Handler):
    elsewhere = True


SERVERS = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Handler, Elsewhere)]
PORTS = [server.server_address[1] for server in SERVERS]
threading.Thread(target=SERVERS[1].serve_forever, daemon=True).start()
with open(os.path.join(DIR, "ports.new"), "w") as file:
    file.write(" ".join(map(str, PORTS)))
os.rename(os.path.join(DIR, "ports.new"), os.path.join(DIR, "ports"))
SERVERS[0].serve_forever()
