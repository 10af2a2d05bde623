"""What stands in for Weights & Biases in tests: a server on the loopback interface, and a reader of its files.

The server speaks as much of the protocol as the client asks for: who am I, here is a run, stream of history and
summary, places for files. It keeps what it is sent.
"""

import gzip
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "k" * 40


class Server:
    """Runs by id: config, history as {line: row}, summary, exit code; and every path that was asked for.

    Behind the first `healthy` parts of the stream, `fails` answers 500 to it, `cuts` closes the connection instead, and
    `slow` waits first. Whatever else is asked for is answered after `late` seconds.
    """

    def __init__(self):
        self.runs, self.paths, self.streams, self.healthy = {}, set(), 0, 0
        self.fails, self.cuts, self.slow, self.late = False, False, 0.0, 0.0

    @property
    def environment(self):
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def history(self, run_id):
        lines = self.runs[run_id]["history"]
        return [lines[number] for number in sorted(lines)]

    def graphql(self, query, variables):
        if "upsertBucket" in query:
            run = self.runs.setdefault(variables["name"], {"history": {}, "summary": {}, "starts": 0})
            given = {key: value for key, value in variables.items() if value is not None}
            run["starts"] += "config" in given and "id" not in given
            run.setdefault("variables", {}).update(given)
            entity = {"id": "e", "name": variables.get("entity") or "me"}
            project = {"id": "p", "name": variables.get("project") or "fedmef", "entity": entity}
            bucket = {
                "id": "b", "name": variables["name"], "displayName": variables.get("displayName") or "x",
                "description": None, "config": "{}", "sweepName": variables.get("sweep"), "project": project,
                "historyLineCount": 0,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            viewer = {"id": "u", "username": "me", "email": None, "entity": "me", "flags": "{}", "admin": False}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        return {}

    def stream(self, run_id, files):
        run = self.runs[run_id]
        for name, part in files.items():
            if name == "wandb-history.jsonl":
                for offset, line in enumerate(part["content"], start=part["offset"]):
                    run["history"][offset] = json.loads(line)
            elif name == "wandb-summary.json":
                run["summary"] = json.loads(part["content"][-1])


@contextmanager
def serving():
    """A server that answers while the body runs."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, content, status=200):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def body(self):
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def do_POST(self):
            data = self.body()
            state.paths.add(self.path)
            if self.path == "/graphql":
                time.sleep(state.late)
                asked = json.loads(data)
                return self.answer({"data": state.graphql(asked["query"], asked.get("variables") or {})})
            if self.path.endswith("/file_stream"):
                state.streams += 1
                if state.streams > state.healthy:
                    time.sleep(state.slow)
                    if state.cuts:
                        self.close_connection = True
                        return self.connection.shutdown(socket.SHUT_RDWR)
                    if state.fails:
                        return self.answer({"error": "broken"}, 500)
                sent, run = json.loads(data), self.path.split("/")[-2]
                state.stream(run, sent.get("files", {}))
                if sent.get("complete"):
                    state.runs[run]["exit code"] = sent["exitcode"]
            return self.answer({})

        def do_PUT(self):
            self.body()
            self.answer({})

        do_GET = do_PUT

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def records(path):
    """The records of a .wandb file, one W&B message each; LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, block, place, whole, found = path.read_bytes(), 32768, 7, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part = data[place + 7 : place + 7 + size]
        if kind == 0 or len(part) < size:
            break  # the end of a file whose process was killed
        whole, place = whole + part, place + 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def rows(path):
    """The history in a .wandb file: what was logged in each step, without W&B's own keys."""
    found = []
    for record in records(path):
        if record.HasField("history"):
            items = record.history.item
            row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}
            found.append({key: value for key, value in row.items() if not key.startswith("_")})
    return found


def exit_codes(path):
    """What the process that wrote a .wandb file says it ended with; none where it was killed."""
    return [record.exit.exit_code for record in records(path) if record.HasField("exit")]


def own(row):
    """A row of the server's history without W&B's own keys."""
    return {key: value for key, value in row.items() if not key.startswith("_")}
