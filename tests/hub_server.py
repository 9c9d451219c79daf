"""A hub on the loopback address, which serves folders to the real clients and counts requests.

Clients find it by HF_ENDPOINT, which they read when they are imported: they run in processes of
their own. As on the real hub, large files are elsewhere: their address leads to another host.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets

LARGE = (".safetensors", ".bin", ".parquet", ".gz")
API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?")
RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")
# What a name can suffer from: status, X-Error-Code, X-Error-Message.
REFUSALS = {
    "missing": (404, "RepoNotFound", "Repository not found"),
    "gated": (403, "GatedRepo", "Access to it is restricted and you are not in the list"),
    "no revision": (404, "RevisionNotFound", "Invalid rev id"),
    "no file": (404, "EntryNotFound", "Entry not found"),
    "down": (500, "", "Internal error"),
}


class Hub:
    """A hub whose repositories are folders: ROOT/models/OWNER/NAME/REVISION, likewise datasets.

    Attributes:
        requests: how often each (method, path) was asked for.
        faults: "gated", "down" or "cut" (downloads break off) by the name of a repository.
        private: the token that a name wants, for names that want one.
        tokens: those that came with requests for large files.
    """

    def __init__(self, root: Path):
        self.root = root
        self.requests: Counter[tuple[str, str]] = Counter()
        self.faults: dict[str, str] = {}
        self.private: dict[str, str] = {}
        self.tokens: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, home: Path, offline: bool = False) -> dict[str, str]:
        """Variables for clients of this hub, with their cache in a folder of the test."""
        switch = str(int(offline))
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": switch}

    def folder(self, kind: str, name: str, revision: str = "main") -> Path:
        """Where the files of a repository are laid out; kind is models or datasets."""
        folder = self.root / kind / name.replace("/", "--") / revision
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, kind: str, name: str, revision: str) -> tuple[Path | None, str]:
        """The folder of a revision, and its commit; or None, and why."""
        repository = self.root / kind / name.replace("/", "--")
        if not repository.is_dir():
            return None, "missing"
        for folder in repository.iterdir():
            commit = self.commit(folder)
            if revision in (folder.name, commit):
                return folder, commit
        return None, "no revision"

    def commit(self, folder: Path) -> str:
        """A hash of the content."""
        content = [f"{name} {_hash(folder / name)}" for name in self.files(folder)]
        return hashlib.sha1("\n".join(content).encode()).hexdigest()

    def files(self, folder: Path) -> list[str]:
        """The names of a repository's files."""
        return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())

    def downloads(self) -> Counter[str]:
        """How often each large file was fetched: OWNER--NAME/REVISION/FILE."""
        large = [path for _, path in self.requests if path.startswith("/large/")]
        return Counter({path.split("/", 3)[3]: self.requests["GET", path] for path in large})


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _entry(folder: Path, name: str) -> dict:
    path = folder / name
    entry = {"type": "file", "path": name, "size": path.stat().st_size, "oid": _hash(path)[:40]}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": _hash(path), "size": entry["size"], "pointerSize": 130}
    return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words) -> None:
            pass  # they are counted

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = urlsplit(self.path).path
            hub.requests[self.command, unquote(path)] += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path.startswith("/large/"):
                hub.tokens.add(self.headers.get("Authorization"))
                self.send_file(hub.root / unquote(path.removeprefix("/large/")), {})
            elif found := API.fullmatch(path):
                kind, name, what, revision, rest = (unquote(word or "") for word in found.groups())
                if place := self.place(kind, name, revision or "main"):
                    self.describe(name, what, rest, body, *place)
            elif found := RESOLVE.fullmatch(path):
                kind, *words = (unquote(word or "") for word in found.groups())
                self.resolve(kind.rstrip("/") or "models", *words)
            else:
                self.refuse("no file")

        def place(self, kind: str, name: str, revision: str) -> tuple[Path, str] | None:
            """The folder and commit of what is asked for; None: it was refused."""
            folder, commit = hub.find(kind, name, revision)
            fault = hub.faults.get(name)
            wanted = hub.private.get(name)
            if wanted and self.headers.get("Authorization") != f"Bearer {wanted}":
                fault = "missing"  # a private name is not told from none
            if fault in REFUSALS or folder is None:
                self.refuse(fault if fault in REFUSALS else commit)
                return None
            return folder, commit

        def describe(self, name, what, rest, body, folder, commit) -> None:
            """What the API says of a repository, of its tree, or of some paths."""
            files = hub.files(folder)
            if what == "tree" and not (folder / rest).is_dir():
                self.refuse("no file")
            elif what == "tree":
                self.send_json([_entry(folder, f) for f in files if f.startswith(rest)])
            elif what == "paths-info":
                asked = json.loads(body)["paths"]
                entries = [_entry(folder, f) for f in files if f in asked]
                folders = [p for p in asked if p and (folder / p).is_dir()]
                entries += [{"type": "directory", "path": p, "oid": "0"} for p in folders]
                self.send_json(entries)
            else:
                siblings = [{"rfilename": f} for f in files]
                self.send_json({"id": name, "sha": commit, "siblings": siblings})

        def resolve(self, kind: str, name: str, revision: str, file: str) -> None:
            """Send a small file; of a large one the address, on another host as it were."""
            place = self.place(kind, name, revision)
            if place is None:
                return
            path = place[0] / file
            headers = {"X-Repo-Commit": place[1]}
            if not path.is_file():
                self.refuse("no file", headers)
            elif not file.endswith(LARGE):
                self.send_file(path, headers | {"ETag": f'"{_hash(path)[:40]}"'})
            else:
                size, where = path.stat().st_size, path.relative_to(hub.root)
                port = hub.server.server_port
                headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{_hash(path)}"'}
                self.send(302, headers | {"Location": f"http://localhost:{port}/large/{where}"})

        def send_file(self, path: Path, headers: dict[str, str]) -> None:
            content, status = path.read_bytes(), 200
            size = len(content)
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                first, last = int(asked[1]), int(asked[2] or size - 1)
                content, status = content[first : last + 1], 206
                headers["Content-Range"] = f"bytes {first}-{min(last, size - 1)}/{size}"
            is_cut = self.path.startswith("/large/") and any(
                fault == "cut" and name.replace("/", "--") in path.parts
                for name, fault in hub.faults.items()
            )
            self.send(status, headers, content, cut=is_cut)

        def send_json(self, value: dict | list) -> None:
            self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def refuse(self, reason: str, headers: dict[str, str] | None = None) -> None:
            status, code, message = REFUSALS[reason]
            errors = {"X-Error-Code": code, "X-Error-Message": message}
            self.send(status, errors | (headers or {}))

        def send(self, status: int, headers: dict, content: bytes = b"", cut: bool = False) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

    return Handler


def write_rm_static(hub: Hub, train: list[dict], test: list[dict]) -> Path:
    """Dahoas/rm-static with these rows: its files have the names that they have on the hub."""
    folder = hub.folder("datasets", "Dahoas/rm-static")
    (folder / "data").mkdir()
    for split, rows in {"train": train, "test": test}.items():
        table = datasets.Dataset.from_list(rows)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001-2a1df75c6bce91ab.parquet")
    (folder / "README.md").write_text("---\ndataset_info:\n  dataset_size: 7\n---\n# rm-static\n")
    return folder
