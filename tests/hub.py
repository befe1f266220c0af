"""A stand-in for the Hugging Face Hub on loopback: the parts of its API that the real clients ask for."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz01234567"  # the one that may write
READ_TOKEN = "hf_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"  # known, but may not
PAGE = 2  # entries in a page of a listing: small, so that clients must turn it
SMALL = 1000  # bytes: what is larger, or ends in .safetensors, goes by LFS


@dataclass
class Repo:
    """One model or data set."""

    kind: str  # models or datasets
    files: dict[str, bytes] = field(default_factory=dict)  # by path, of the main branch
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    commits: list[str] = field(default_factory=list)  # messages

    @property
    def sha(self) -> str:
        """Of the main branch, by its content, as in git."""
        listed = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in self.files.items())
        return hashlib.sha1(repr(listed).encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or commit; None if there is none."""
        return self.files if revision in ("main", self.sha) else self.branches.get(revision)


class StandIn(ThreadingHTTPServer):
    """The server, its repositories and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}  # by kind and name
        self.lfs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fails: dict[str, int] = {}  # beginning of a path -> status to answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, kind: str, name: str, folder: Path, **options: bool) -> Repo:
        """Serve a folder as a repository."""
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repos[kind, name] = Repo(kind, found, **options)
        return self.repos[kind, name]


@contextmanager
def standing_in():
    """The server in a thread of its own, until the block is left."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class RefusedError(Exception):
    """An answer that is an error: status, the Hub's code for it, and its text."""


def entry(path: str, content: bytes) -> dict:
    """A file in a listing."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    listed = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if by_lfs(path, len(content)):
        listed["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return listed


def by_lfs(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".parquet")) or (size > SMALL and not path.endswith((".md", ".json")))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: StandIn
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("GET", r"/api/models", "ping"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/(models|datasets)/(.+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(models|datasets)/(.+)/commit/([^/]+)", "commit"),
        ("POST", r"/api/(models|datasets)/(.+)/branch/([^/]+)", "branch"),
        ("POST", r"/api/(models|datasets)/(.+)/paths-info/([^/]+)", "paths_info"),
        ("GET", r"/api/(models|datasets)/(.+)/tree/([^/]+)/?(.*)", "tree"),
        ("GET", r"/api/(models|datasets)/(.+)/revision/([^/]+)", "info"),
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+|[^/]+)", "info"),
        ("POST", r"/(.+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(\w+)", "lfs_put"),
        ("GET", r"/(datasets/)?([^/]+/[^/]+|[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.server.asked.append(f"{self.command} {self.path}")
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for prefix, status in self.server.fails.items():
                if address.path.startswith(prefix):
                    sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                    raise RefusedError(status, "", f"{sent} as the test asked")  # a server that repeats the token
            for verb, pattern, name in self.ROUTES:
                if verb == method and (found := re.fullmatch(pattern, address.path)):
                    getattr(self, name)(*(unquote(part) if part else part for part in found.groups()))
                    return
            raise RefusedError(404, "", "no such address")
        except RefusedError as refused:
            status, code, text = refused.args
            self.answer({"error": text}, status, {"X-Error-Code": code, "X-Error-Message": text})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def answer(self, document: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self) -> dict:
        return json.loads(self.body)

    def who(self, *, writes: bool = False) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            raise RefusedError(401, "", "Invalid username or password.")
        if writes and token != TOKEN:
            raise RefusedError(403, "", "You don't have the rights to create a model under this namespace")
        return "me"

    def repo(self, kind: str, name: str) -> Repo:
        found = self.server.repos.get((kind, name))
        if found is None:  # the Hub does not say whether a name exists to those who may not know
            raise RefusedError(
                401 if "Authorization" not in self.headers else 404, "RepoNotFound", "Repository not found"
            )
        return found

    def files(self, kind: str, name: str, revision: str) -> dict[str, bytes]:
        found = self.repo(kind, name).at(revision)
        if found is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def ping(self) -> None:
        self.answer([])

    def whoami(self) -> None:
        self.answer({"type": "user", "name": self.who(), "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        user, asked = self.who(writes=True), self.json()
        if (asked["organization"] or user) != user:
            raise RefusedError(403, "", f"You don't have the rights to create a model under {asked['organization']}")
        name = f"{user}/{asked['name']}"
        key = ("models", name)
        if key in self.server.repos:
            self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.repos[key] = Repo("models", {".gitattributes": b""}, private=asked.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{name}", "name": name})

    def validate(self) -> None:
        head = re.match(r"---\n(.*?)\n---", self.json()["content"], re.DOTALL)
        errors = []
        if isinstance(found := yaml.safe_load(head[1]) if head else {}, dict) and "license" in found:
            known = isinstance(found["license"], str) and found["license"].islower()
            errors = [] if known else [{"message": '"license" must be one of apache-2.0, mit, ...'}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self.who(writes=True)
        self.files(kind, name, revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if by_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
            }
            for file in self.json()["files"]
        ]
        self.answer({"files": modes})

    def lfs_batch(self, name: str) -> None:
        self.who(writes=True)
        objects = [
            file
            | (
                {}
                if file["oid"] in self.server.lfs
                else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{file['oid']}"}}}
            )
            for file in self.json()["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "", "the content is not what its hash says")
        self.server.lfs[oid] = self.body
        self.answer({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        self.who(writes=True)
        repo, target = self.repo(kind, name), self.files(kind, name, revision)
        made = dict(target)
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                made[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                made[value["path"]] = self.server.lfs[value["oid"]]
        target.clear()
        target.update(made)
        repo.commits.append(message)
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{repo.sha}", "commitOid": repo.sha})

    def branch(self, kind: str, name: str, branch: str) -> None:
        self.who(writes=True)
        repo = self.repo(kind, name)
        if branch in repo.branches:
            raise RefusedError(409, "", "Reference already exists")
        repo.branches[branch] = dict(repo.files)
        self.answer({})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        files, repo = self.files(kind, name, revision), self.repo(kind, name)
        self.answer(
            {
                "_id": "0",
                "id": name,
                "sha": repo.sha,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2025-01-01T00:00:00.000Z",
                "createdAt": "2025-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in sorted(files)],
            }
        )

    def tree(self, kind: str, name: str, revision: str, under: str) -> None:
        files, deep = self.files(kind, name, revision), self.query.get("recursive", ["false"])[0].lower() == "true"
        entries = {}
        for path, content in sorted(files.items()):
            if under and not path.startswith(f"{under}/"):
                continue
            folders = [str(parent) for parent in reversed(Path(path).parents) if str(parent) != "."]
            inside = [folder for folder in folders if len(folder) > len(under)]
            for folder in inside if deep else inside[:1]:
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if deep or not inside:
                entries[path] = entry(path, content)
        if under and not entries:
            raise RefusedError(404, "EntryNotFound", f"{under} does not exist on {revision}")
        start = int(self.query.get("cursor", ["0"])[0])
        query = f"recursive={deep}&cursor={start + PAGE}"
        following = f"<{self.server.url}{urlsplit(self.path).path}?{query}>"
        more = {"Link": f'{following}; rel="next"'} if start + PAGE < len(entries) else {}
        self.answer(list(entries.values())[start : start + PAGE], headers=more)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        files = self.files(kind, name, revision)
        form = parse_qs(self.body.decode())
        asked = form.get("paths") or self.json()["paths"]
        found = [entry(path, files[path]) for path in asked if path in files]
        for path in asked:
            if path not in files and any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        self.answer(found)

    def resolve(self, dataset: str | None, name: str, revision: str, path: str) -> None:
        kind = "datasets" if dataset else "models"
        repo, files = self.repo(kind, name), self.files(kind, name, revision)
        if repo.gated:
            raise RefusedError(401, "GatedRepo", f"Access to {name} is restricted. Please log in.")
        headers = {"X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        if path not in files:
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist")
        content, listed = files[path], entry(path, files[path])
        headers["ETag"] = f'"{listed["lfs"]["oid"] if "lfs" in listed else listed["oid"]}"'
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            self.answer(content, 200, headers)
            return
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(content[start : end + 1], 206, headers)
