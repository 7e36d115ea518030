"""Pushing to and loading from the hub: the real huggingface_hub against a server on loopback."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from processes import free_port
from runs import largest_difference
from tiny_models import relative_files, tiny_model

from jtcse_jax import export
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported, hub, saved_model

NAME, TOKEN, COMMIT = "someone/a-twin", "hf_secret", "c" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push and a download need; `state` is the server's."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        state, body = self.server.state, self.rfile.read(int(self.headers["Content-Length"]))
        state["posted"].append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(state["refusal"], {"error": "no"})
        if self.path == "/api/repos/create":
            state["created"] = json.loads(body)
            return self.answer(200, {"url": f"{state['url']}/{NAME}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == f"/api/models/{NAME}/preupload/main":
            asked = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in asked
            ]
            return self.answer(200, {"files": modes})
        assert self.path == f"/api/models/{NAME}/commit/main", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                state["files"][value["path"]] = base64.b64decode(value["content"])
        url = f"{state['url']}/{NAME}/commit/{COMMIT}"
        return self.answer(200, {"commitUrl": url, "commitOid": COMMIT})

    def do_GET(self):
        files = self.server.state["files"]
        path = self.path.split("?")[0]
        tree = [
            {"type": "file", "path": name, "oid": digest(content), "size": len(content)}
            for name, content in files.items()
        ]
        if path.startswith(f"/api/models/{NAME}/tree/"):
            return self.answer(200, tree)
        if "created" not in self.server.state:
            return self.answer(404, {"error": "absent"}, {"X-Error-Code": "RepoNotFound"})
        if path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(200, {"id": NAME, "sha": COMMIT, "siblings": siblings})
        content = files.get(path.removeprefix(f"/{NAME}/resolve/{COMMIT}/"))
        if content is None:
            return self.answer(404, {"error": "absent"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT}
        return self.answer(200, content, headers)

    do_HEAD = do_GET

    def answer(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """What the hub on loopback knows, and huggingface_hub turned to it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        url = f"http://127.0.0.1:{hub.server_port}"
        hub.state = {"url": url, "posted": [], "files": {}, "refusal": 401}
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        # What HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_CACHE set when the library is imported.
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub.state
        hub.shutdown()
        thread.join()


def test_pushed_folder_is_the_exported_one_and_loads_by_name(server, tmp_path, capsys):
    twin = tiny_model(2)
    exported.export(twin, tmp_path / "start")
    output = tmp_path / "out"
    arguments = export.Arguments(
        model=str(tmp_path / "start"), output=str(output), push=NAME, private=True
    )
    export.export(arguments)
    assert f"pushed: {server['url']}/{NAME}" in capsys.readouterr().out
    assert server["created"] | {"visibility": "private"} == server["created"]
    assert (server["created"]["name"], server["created"]["organization"]) == ("a-twin", "someone")
    names = {str(name) for name in relative_files(output)}
    assert server["files"].keys() == names
    assert all(server["files"][name] == (output / name).read_bytes() for name in names)
    assert f'SentenceTransformer("{NAME}"' in (output / "README.md").read_text()

    loaded = saved_model.load(NAME)
    assert largest_difference(loaded.params, twin.params) == 0
    assert (loaded.bank, loaded.serving_length) == (twin.bank, twin.serving_length)
    exported.export(loaded, tmp_path / "again")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == server["files"][name], name


def test_repository_is_public_or_what_its_owner_set_by_default(server, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.push(tmp_path, NAME)
    assert "visibility" not in server["created"] and "private" not in server["created"]
    assert server["files"] == {"README.md": b"---\nlicense: mit\n---\n"}


def test_a_name_without_user_is_the_one_the_hub_makes_of_it(server, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert NAME in hub.push(tmp_path, NAME.partition("/")[2])
    assert server["files"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "the hub rejects the token (401): log in with `hf auth login`"),
        (403, "not allowed (403): use a token with write access to this name"),
    ],
)
def test_refusal_of_the_hub_is_one_line(server, tmp_path, monkeypatch, status, reason, there):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    (tmp_path / "README.md").write_text("")
    server["refusal"] = status
    if there:
        server["created"] = {}
    with pytest.raises(UserError) as error:
        hub.push(tmp_path, NAME)
    said = str(error.value)
    assert said.startswith(f"--push {NAME}: ") and reason in said and "\n" not in said
    assert f"hf upload {NAME} {tmp_path}" in said
    assert "hf_wrong" not in said


def test_push_without_a_token_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "README.md").write_text("")
    with pytest.raises(UserError, match=f"--push {NAME}: .*token.*hf auth login"):
        hub.push(tmp_path, NAME)


def test_push_offline_is_one_line(tmp_path):
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it; the folder is complete"):
        hub.push(tmp_path, NAME)


def test_hub_that_does_not_answer_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=f"--push {NAME}: ConnectError: .*refused") as error:
        hub.push(Path(tmp_path), NAME)
    assert "\n" not in str(error.value)
