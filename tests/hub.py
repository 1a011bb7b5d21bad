"""A Hub of our own on the loopback interface, for the real client of huggingface_hub: what pushing and loading need.

with Hub({"hf_token": "jane"}) as hub:
    subprocess.run(command, env=os.environ | hub.environment)
hub.repos["jane/model"].files["README.md"]
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".arrow")
ROUTES = {
    ("GET", r"/api/whoami-v2"): "whoami",
    ("POST", r"/api/repos/create"): "create",
    ("POST", r"/api/validate-yaml"): "validate",
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"): "preupload",
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"): "lfs",
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)"): "upload",
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"): "commit",
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+?)(/revision/(?P<revision>[^/]+))?"): "info",
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?"): "tree",
    ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"): "resolve",
    ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"): "resolve",
}
WRITES = ("create", "preupload", "lfs", "commit")


@dataclass
class Repo:
    """The files of a repository's one branch, the messages of its commits, and every file that ever came."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    pushed: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()  # noqa: S324


class RefusedError(Exception):
    """An answer that is an error: the status, what is wrong, and the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Hub:
    """The server; `tokens` may write, under the name they map to.

    Args:
        tokens: the name of the user of each token.
        failing: how many commits each of these repositories takes before every further one is an error 500.
    """

    def __init__(self, tokens: dict[str, str], failing: dict[str, int] | None = None) -> None:
        self.tokens, self.failing = tokens, failing or {}
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.environment = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repo(self, name: str) -> Repo:
        if name not in self.repos:
            raise RefusedError(404, f"Repository {name} not found", "RepoNotFound")
        return self.repos[name]

    def whoami(self, handler: "Handler") -> Any:
        return {"type": "user", "name": handler.user(), "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create(self, handler: "Handler") -> Any:
        wanted = json.loads(handler.body)
        name = f"{wanted.get('organization') or handler.user()}/{wanted['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name, "id": name}
        if name in self.repos:
            return 409, answer
        self.repos[name] = Repo()
        return answer

    def validate(self, handler: "Handler") -> Any:
        """The rules of the Hub that a generated card could break."""
        _, header, _ = json.loads(handler.body)["content"].split("---\n", 2)
        data = yaml.safe_load(header)
        errors = []
        for model in data.get("model-index", []):
            for result in model["results"]:
                whole = {"type", "name"} <= set(result["dataset"]) and "type" in result["task"] and result["metrics"]
                if not whole or any(not {"type", "value"} <= set(metric) for metric in result["metrics"]):
                    errors.append({"message": f"model-index: {result}"})
        if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", data.get("base_model", "none")):
            errors.append({"message": f"base_model: {data['base_model']}"})
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def preupload(self, handler: "Handler", repo: str, revision: str) -> Any:
        self.repo(repo)
        modes = {True: "lfs", False: "regular"}
        paths = [file["path"] for file in json.loads(handler.body)["files"]]
        keys = ("path", "uploadMode", "shouldIgnore")
        return {"files": [dict(zip(keys, (path, modes[path.endswith(LARGE)], False), strict=True)) for path in paths]}

    def lfs(self, handler: "Handler", repo: str) -> Any:
        objects = [{key: item[key] for key in ("oid", "size")} for item in json.loads(handler.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.large:
                item["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def upload(self, handler: "Handler", oid: str) -> Any:
        if hashlib.sha256(handler.body).hexdigest() != oid:
            raise RefusedError(422, f"the content is not {oid}")
        self.large[oid] = handler.body
        return {}

    def commit(self, handler: "Handler", repo: str, revision: str) -> Any:
        target = self.repo(repo)
        if len(target.commits) >= self.failing.get(repo, len(target.commits) + 1):
            raise RefusedError(500, "the disk of the Hub is full")
        for line in handler.body.splitlines():
            kind, value = (item := json.loads(line))["key"], item["value"]
            if kind == "header":
                message = value["summary"]
            elif kind in ("file", "lfsFile"):
                content = base64.b64decode(value["content"]) if kind == "file" else self.large[value["oid"]]
                target.files[value["path"]] = content
                target.pushed.append((value["path"], content))
            elif kind == "deletedFile":
                del target.files[value["path"]]
        target.commits.append(message)
        return {"commitOid": target.sha, "commitUrl": f"{self.url}/{repo}/commit/{target.sha}"}

    def info(self, handler: "Handler", repo: str, revision: str | None) -> Any:
        target = self.repo(repo)
        files = [{"rfilename": path} for path in target.files]
        return {"id": repo, "modelId": repo, "sha": target.sha, "siblings": files, "tags": [], "private": False}

    def tree(self, handler: "Handler", repo: str, revision: str, folder: str | None) -> Any:
        files = self.repo(repo).files
        inside = [path for path in files if not folder or path.startswith(f"{folder}/")]
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in inside]

    def resolve(self, handler: "Handler", repo: str, revision: str, path: str) -> Any:
        target = self.repo(repo)
        if path not in target.files:
            raise RefusedError(404, f"{path} not found", "EntryNotFound")
        return target.files[path], {
            "X-Repo-Commit": target.sha,
            "ETag": f'"{hashlib.sha1(target.files[path]).hexdigest()}"',  # noqa: S324
        }


class Handler(BaseHTTPRequestHandler):
    """Takes a request to the method of the hub that its route names."""

    hub: Hub
    body: bytes
    protocol_version = "HTTP/1.1"

    def user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise RefusedError(401, "Invalid user token")
        return self.hub.tokens[token]

    def answer(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(parts)
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, content, headers = self.route(unquote(urlsplit(self.path).path))
        except RefusedError as refusal:
            status, content, headers = refusal.status, {"error": str(refusal)}, refusal.headers
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(payload))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def route(self, path: str) -> tuple[int, Any, dict[str, str]]:
        """The status, the content and the headers of the answer."""
        for (method, pattern), name in ROUTES.items():
            if method == self.command and (found := re.fullmatch(pattern, path)):
                if name in WRITES:
                    self.user()
                with self.hub.lock:
                    answer = getattr(self.hub, name)(self, **found.groupdict())
                if isinstance(answer, tuple):
                    first, second = answer
                    return (first, second, {}) if isinstance(first, int) else (200, first, second)
                return 200, answer, {}
        raise RefusedError(404, f"{self.command} {path} is no route of this Hub")

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""
