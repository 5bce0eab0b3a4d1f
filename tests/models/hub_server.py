"""A hub on this machine: what downloads and pushes need of one, failing as it is told to."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT, OLDER = "a" * 40, "b" * 40
REVISIONS = {"main": COMMIT, "old": OLDER, COMMIT: COMMIT, OLDER: OLDER}
CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RevisionNotFound"}
LARGE = (".safetensors", ".bin", "tokenizer.json")  # not in git itself, but in large storage


class Hub(ThreadingHTTPServer):
    """A hub on this machine.

    Attributes:
      repos: for each repository, the bytes of its files by name.
      faults: for the end of a path, a list. Each request for such a path takes one fault from it: a
        status, "cut" or "stall" in the middle of the file, or other bytes.
      asked: method, path and range of each request.
      pushed: the files of a commit.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.faults, self.asked, self.pushed = {}, {}, [], {}
        self.stalled, self.address = threading.Event(), f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


def listed(name, data):
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 9}
    lfs = lfs if name.endswith(LARGE) else None
    return {"rfilename": name, "size": len(data), "blobId": blob, "lfs": lfs}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *given):
        pass

    def answer(self, status, data=b"", most=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data[:most])

    def do_GET(self):
        path, hub = self.path.partition("?")[0], self.server
        hub.asked.append((self.command, path, self.headers.get("Range")))
        end = next((end for end in hub.faults if path.endswith(end) and hub.faults[end]), None)
        fault = hub.faults[end].pop(0) if end else None
        parts = path.strip("/").split(
            "/"
        )  # api/models/A/B/revision/R, A/B/resolve/R/FILE, cdn/A/B/FILE
        start = {"api": 2, "cdn": 1}.get(parts[0], 0)
        repo = "/".join(parts[start : start + 2])
        status = fault if isinstance(fault, int) else 200 if repo in hub.repos else 401
        commit = REVISIONS.get(parts[5]) if parts[0] == "api" and status == 200 else COMMIT
        if status != 200 or commit is None:
            status = 404 if commit is None else status
            return self.answer(status, X_Error_Code=CODES.get(status, ""))
        if parts[0] == "api":
            files = [listed(*each) for each in hub.repos[repo].items()]
            data = json.dumps({"id": repo, "sha": commit, "siblings": files}).encode()
            return self.answer(200, data)
        if start == 0 and path.endswith(LARGE):
            return self.answer(302, Location=f"/cdn/{repo}/{parts[-1]}")
        data = fault if isinstance(fault, bytes) else hub.repos[repo][parts[-1]]
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        more = {"Content_Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if begin else {}
        half = (len(data) - begin) // 2 if fault in ("cut", "stall") else None
        self.answer(206 if begin else 200, data[begin:], half, **more)
        if fault == "stall":
            hub.stalled.set()
            with contextlib.suppress(OSError):
                self.rfile.read(1)  # until the other side goes

    def do_POST(self):
        body, hub = self.rfile.read(int(self.headers["Content-Length"])), self.server
        if self.headers.get("Authorization") != "Bearer hf_may_write":
            return self.answer(403)
        url, each = f"{hub.address}/user/kept", {"uploadMode": "regular", "shouldIgnore": False}
        answer = {"url": url, "commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT}
        if "/preupload/" in self.path:
            answer = {"files": [{**file, **each} for file in json.loads(body)["files"]]}
        for line in body.splitlines() if "/commit/" in self.path else ():
            if (given := json.loads(line))["key"] == "file":
                file = given["value"]
                hub.pushed[file["path"]] = base64.b64decode(file["content"])
        self.answer(200, json.dumps(answer).encode())
