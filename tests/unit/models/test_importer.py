"""Imports end whole or not at all, from a folder or from a small hub on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import transformers

from checkpoints import CHATML, byte_tokenizer, random_gpt2, random_llama
from plinth.models.importer import ImportedModel, import_source
from plinth.models.weights import load_decoder, weights_digest
from plinth.shared.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
    Unavailable,
)

CARD = "---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(folder: Path) -> Path:
    byte_tokenizer(random_llama(folder, layers=2))
    (folder / "README.md").write_text(CARD)
    return folder


def check_model_folder(imported: ImportedModel, source: Path) -> None:
    made = imported.folder
    assert sorted(p.name for p in made.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    ours = transformers.AutoModelForCausalLM.from_pretrained(made).state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    reference = transformers.AutoTokenizer.from_pretrained(source)
    for text in ("Hello 123", "<|im_start|>é 🙂\n"):
        assert tokenizer(text).input_ids == reference(text).input_ids
    assert json.loads((made / "tokenizer_config.json").read_text())["chat_template"] == CHATML
    assert imported.weights_digest == weights_digest(source) == weights_digest(made)
    load_decoder(made)


@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB"])
def test_a_folder_comes_whole(max_shard_size: str, tmp_path: Path) -> None:
    source = byte_tokenizer(random_llama(tmp_path / "hf", max_shard_size=max_shard_size))
    (source / "README.md").write_text(CARD)
    imported = import_source(str(source), tmp_path / "made")
    check_model_folder(imported, source)
    assert imported.license == "apache-2.0"
    assert imported.original_digest.startswith("sha256:")
    assert set(imported.metadata()) >= {"source", "format", "original_digest", "license"}
    assert str(tmp_path) not in json.dumps(imported.metadata())
    assert [p.name for p in tmp_path.iterdir()].count("made") == 1


def test_bf16_stays_bf16(tmp_path: Path) -> None:
    source = byte_tokenizer(random_gpt2(tmp_path / "hf", dtype=torch.bfloat16))
    made = import_source(str(source), tmp_path / "made").folder
    assert weights_digest(made) == weights_digest(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    assert model.dtype == torch.bfloat16


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def break_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))


def break_nan(folder: Path) -> None:
    decoder = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        decoder.model.norm.weight[0] = float("nan")
    decoder.save_pretrained(folder)


def break_vocabulary(folder: Path) -> None:
    random_llama(folder, vocab_size=100)


def break_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (break_tokenizer, InvalidArgument, "tokenizer"),
        (lambda f: (f / "tokenizer.json").unlink(), NotFound, "a model needs its tokenizer"),
        (break_code, InvalidArgument, "runs none"),
        (break_nan, DataLoss, r"model\.norm\.weight.*NaN"),
        (break_vocabulary, InvalidArgument, "token id 258 has no embedding"),
        (break_cut, DataLoss, "damaged or cut off"),
        (lambda f: (f / "config.json").unlink(), NotFound, "config.json"),
    ],
)
def test_a_bad_folder_leaves_nothing(
    damage, error: type[PlinthError], words: str, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path / "hf")
    damage(source)
    with pytest.raises(error, match=words):
        import_source(str(source), tmp_path / "out" / "made")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_target_must_be_free_and_the_source_be_there(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("keep")
    with pytest.raises(AlreadyExists):
        import_source("smollm2", tmp_path / "made")
    assert (tmp_path / "made" / "mine.txt").read_text() == "keep"
    with pytest.raises(NotFound, match="no such folder or file"):
        import_source("nowhere", tmp_path / "new")


class Hub(ThreadingHTTPServer):
    """As much of a hub as a download needs: model info, the tree, and files by revision."""

    daemon_threads = True

    def __init__(self, folder: Path, token: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.folder = folder
        self.token = token
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.token and self.headers.get("Authorization") != (
            f"Bearer {self.server.token}"
        ):
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models/org/tiny"):
            return self._info(path)
        parts = path.split("/")
        if path.startswith("/org/tiny/resolve/") and parts[4] in (COMMIT, "main", "v1"):
            return self._file("/".join(parts[5:]))
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, path: str) -> None:
        revision = path.split("/revision/")[1] if "/revision/" in path else "main"
        if revision not in ("main", "v1", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        names = [p.name for p in self.server.folder.iterdir()]
        if "/tree/" in path:
            files = [
                {"type": "file", "path": n, "size": (self.server.folder / n).stat().st_size,
                 "oid": n}
                for n in names
            ]  # fmt: skip
            return self._send(200, json.dumps(files).encode())
        info = {
            "id": "org/tiny",
            "modelId": "org/tiny",
            "sha": COMMIT,
            "private": False,
            "tags": ["license:mit"],
            "siblings": [{"rfilename": n} for n in names],
        }
        return self._send(200, json.dumps(info).encode())

    def _file(self, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.fetched.append(name)
        return self._send(200, path.read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    source = checkpoint(tmp_path / "hub")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    server = Hub(source)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_comes_from_a_hub(hub: Hub, tmp_path: Path) -> None:
    imported = import_source("hf:org/tiny", tmp_path / "made")
    check_model_folder(imported, hub.folder)
    assert (imported.license, imported.revision) == ("mit", COMMIT)
    assert imported.metadata()["source"] == "hf:org/tiny"
    assert not {"pytorch_model.bin", "modeling_evil.py"} & set(hub.fetched)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub", "made"]


def test_an_adapter_of_a_hub_is_told_from_a_model(hub: Hub, tmp_path: Path) -> None:
    """A repository that holds a whole model too is that model."""
    (hub.folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    import_source("hf:org/tiny", tmp_path / "whole")
    (hub.folder / "model.safetensors").rename(hub.folder / "adapter_model.safetensors")
    with pytest.raises(InvalidArgument, match="is a PEFT adapter, not a model") as caught:
        import_source("hf:org/tiny", tmp_path / "made")
    assert "hf download org/tiny --local-dir ADAPTER, plinth models import ADAPTER --base" in (
        caught.value.message
    )


def test_a_hub_s_revision_and_token_are_honoured(hub: Hub, tmp_path: Path) -> None:
    import_source("hf:org/tiny@v1", tmp_path / "a")
    import_source("hf:org/tiny", tmp_path / "b", revision="v1")
    with pytest.raises(NotFound, match="no revision 'v9'"):
        import_source("hf:org/tiny@v9", tmp_path / "c")
    hub.token = "hf_secret"
    with pytest.raises(NotFound, match="private") as refused:
        import_source("hf:org/tiny", tmp_path / "c", token="hf_wrong")
    assert "hf_wrong" not in str(refused.value)
    import_source("hf:org/tiny", tmp_path / "d", token="hf_secret")
    assert not (tmp_path / "c").exists()


def test_a_hub_that_is_wrong_or_away_ends_clearly(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="no such repository"):
        import_source("hf:org/other", tmp_path / "made")
    for name in ("hf:", "hf:a/b/c", "hf:org/ti ny"):
        with pytest.raises(InvalidArgument):
            import_source(name, tmp_path / "made")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises((Unavailable, PermissionDenied), match="cannot be reached"):
        import_source("hf:org/tiny", tmp_path / "made")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]
