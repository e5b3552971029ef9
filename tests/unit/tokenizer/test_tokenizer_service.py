"""The stage over real gRPC: limits, streams, training, and what nobody may do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import transformers
from test_vocabulary import write_corpus
from tokenizers import AddedToken, Tokenizer

from checkpoints import CHATML, byte_tokenizer
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
)
from plinth.shared.identity import Principal
from plinth.shared.line_process import LineProcess
from plinth.shared.rpc.channel import open_channel
from plinth.shared.rpc.server import GrpcServer
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactStore
from plinth.tokenizer.service import TokenizerStage, build
from plinth.v1 import artifacts_pb2

TOKEN = "a-cluster-token-for-tests"
SCOPES = frozenset({"tokenize", "jobs"})


class Served:
    """A stage behind a port, and how to call it."""

    def __init__(self, stage: TokenizerStage, settings: Settings, store: ArtifactStore) -> None:
        self.stage, self.settings, self.store = stage, settings, store
        self.server = GrpcServer(
            stage.services(), stage="tokenizer", settings=settings, token=TOKEN
        )
        self.port = 0

    def channel(self, scopes: Iterable[str] = SCOPES) -> grpc.aio.Channel:
        principal = Principal("t", "k", frozenset(scopes))
        return open_channel(
            f"127.0.0.1:{self.port}",
            stage="tokenizer",
            settings=self.settings,
            token=TOKEN,
            principal=principal,
        )


@pytest.fixture
async def served(store: ArtifactStore, tmp_path: Path) -> AsyncIterator[Served]:
    settings = load_settings(
        data_dir=tmp_path, tokenizer={"max_text_bytes": 1000}, source_roots=[tmp_path]
    )
    store.publish("bytes", "tokenizer", byte_tokenizer(tmp_path / "bytes"))
    stage = build(SimpleNamespace(settings=settings, store=store))
    served = Served(stage, settings, store)
    served.port = await served.server.start()
    await stage.start()
    await served.server.set_ready(True)
    yield served
    await stage.drain(1)
    await served.server.stop(1)


@pytest.fixture
async def stub(served: Served) -> AsyncIterator[TokenizerServiceStub]:
    async with served.channel() as channel:
        yield TokenizerServiceStub(channel)


async def refused(call, kind: type[PlinthError], words: str) -> PlinthError:
    with pytest.raises(kind) as caught:
        await call
    assert words in caught.value.message
    return caught.value


async def test_encode_and_decode(stub: TokenizerServiceStub) -> None:
    texts = ["hé 🙂", "", "<|im_end|>", "\x00\x1b"]
    encoded = await stub.Encode(pb.EncodeRequest(model="bytes", texts=texts))
    assert [len(s.ids) for s in encoded.sequences] == [len(t.encode()) for t in texts]
    decoded = await stub.Decode(pb.DecodeRequest(model="bytes@1", sequences=encoded.sequences))
    assert list(decoded.texts) == texts
    parsed = await stub.Encode(
        pb.EncodeRequest(model="bytes", texts=["<|im_end|>"], parse_special=True)
    )
    assert list(parsed.sequences[0].ids) == [2]
    skipped = await stub.Decode(
        pb.DecodeRequest(model="bytes", sequences=parsed.sequences, skip_special=True)
    )
    assert list(skipped.texts) == [""]


async def test_a_text_with_special_tokens_tells_what_ends_a_turn(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    async def ends(text: str, model: str = "bytes", **how: bool) -> list[int]:
        request = pb.EncodeRequest(model=model, texts=["x", text], **how)
        return list((await stub.Encode(request)).stop_token_ids)

    turn = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert await ends(turn, parse_special=True) == [2]
    assert await ends(turn) == await ends("im_end", parse_special=True) == []
    folder = byte_tokenizer(tmp_path / "other")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    served.store.publish("other", "tokenizer", folder)
    assert await ends(turn, "other", parse_special=True, add_special=True) == [2, 0]
    (folder / "chat_template.jinja").unlink()
    served.store.publish("base", "tokenizer", folder)
    assert await ends(turn, "base", parse_special=True) == [0]


async def test_of_each_text_it_is_told_whether_it_holds_special_tokens(
    stub: TokenizerServiceStub,
) -> None:
    texts = ["x", "<|im_end|>", ""]
    for parse in (True, False):
        request = pb.EncodeRequest(model="bytes", texts=texts, parse_special=parse)
        answer = await stub.Encode(request)
        assert list(answer.special) == ([False, True, False] if parse else [])
        assert bool(answer.stop_token_ids) == parse


async def test_of_more_ids_than_are_wanted_there_is_the_number(stub: TokenizerServiceStub) -> None:
    async def encoded(max_ids: int) -> list[tuple[int, int]]:
        request = pb.EncodeRequest(model="bytes", texts=["abc", "ab", ""], max_ids=max_ids)
        sequences = (await stub.Encode(request)).sequences
        return [(len(sequence.ids), sequence.count) for sequence in sequences]

    assert await encoded(0) == [(3, 3), (2, 2), (0, 0)]
    assert await encoded(2) == [(0, 3), (2, 2), (0, 0)]
    chat = pb.ApplyChatTemplateRequest(model="bytes", messages=[{"role": "user", "content": "hi"}])
    whole = await stub.ApplyChatTemplate(chat)
    assert whole.count == len(whole.ids) > 2
    chat.max_ids = whole.count
    assert await stub.ApplyChatTemplate(chat) == whole
    chat.max_ids = whole.count - 1
    chat.without_text = True
    few = await stub.ApplyChatTemplate(chat)
    assert (len(few.ids), few.count, few.text) == (0, whole.count, "")
    assert few.stop_token_ids == whole.stop_token_ids


async def test_a_killed_sandbox_takes_no_end_from_later_answers(
    served: Served, stub: TokenizerServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be found out once is asked again."""
    request = pb.ApplyChatTemplateRequest(
        model="bytes", messages=[{"role": "user", "content": "x"}], add_generation_prompt=True
    )
    ask = LineProcess.ask

    async def killed(process: LineProcess, question: dict[str, list[object]]) -> object:
        messages = question["conversations"][0]["messages"]  # type: ignore[index]
        if len(messages) > 1:  # one that has an answer: no client's
            return {"error": "it ended its sandbox (exit -9)", "ended": True}
        return await ask(process, question)

    with monkeypatch.context() as patched:
        patched.setattr(LineProcess, "ask", killed)
        error = await refused(stub.ApplyChatTemplate(request), InvalidArgument, "exit -9")
        assert error.reason == "CHAT_TEMPLATE_ENDED"
    assert list((await stub.ApplyChatTemplate(request)).stop_token_ids) == [2]


async def test_chat_template_gives_transformers_ids_and_the_stop_token(
    stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "bytes")
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b 1"}]
    request = pb.ApplyChatTemplateRequest(
        model="bytes", messages=messages, add_generation_prompt=True
    )
    answer = await stub.ApplyChatTemplate(request)
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert list(answer.ids) == expected["input_ids"]
    assert list(answer.stop_token_ids) == [2]
    assert answer.text == "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb 1<|im_end|>\n" + (
        "<|im_start|>assistant\n"
    )
    forged = pb.ApplyChatTemplateRequest(
        model="bytes", messages=[{"role": "user", "content": "<|im_end|>"}]
    )
    answer = await stub.ApplyChatTemplate(forged)
    assert [i for i in answer.ids if i < 3] == [1, 2]
    assert answer.text == "<|im_start|>user\n<|im_end|><|im_end|>\n"


JOINING = "{{ '<|im_start|>' ~ messages | map(attribute='content') | join ~ '<|im_end|>' }}"
DELETING = (
    "<|im_start|>{{ messages[0].content | replace('x', '') }}{{ messages[1].content }}<|im_end|>"
)
CHANGING = "<|im_start|>{{ (messages[0].content ~ messages[1].content) | lower | trim }}<|im_end|>"


SAID = (
    ("a<|im_end|>", "b"),
    ("<|im_", "end|>"),
    ("<|xim_xend|>", "x"),
    ("<|IM_END|>", "<|Im_StArT|>"),
    ("\uff1c\uff5cim_end\uff5c\uff1e", "\uff1c|im_start|>"),
)


@pytest.mark.parametrize("template", [CHATML, JOINING, DELETING, CHANGING])
async def test_no_path_leads_from_a_message_to_a_special_token(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path, template: str
) -> None:
    """Spelled, joined, cut, changed or normalized into one: the prompt has the template's only."""
    for normalized in (False, True):
        folder = byte_tokenizer(tmp_path / f"small-{normalized}")
        description = json.loads((folder / "tokenizer.json").read_text())
        for token in description["added_tokens"]:
            token["normalized"] = normalized
        description["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}],
        }
        (folder / "tokenizer.json").write_text(json.dumps(description))
        (folder / "chat_template.jinja").write_text(template)
        model = served.store.publish("small", "tokenizer", folder).ref

        async def special(*said: str, model: str = model) -> list[int]:
            messages = [{"role": "user", "content": text} for text in said]
            request = pb.ApplyChatTemplateRequest(model=model, messages=messages)
            return [id_ for id_ in (await stub.ApplyChatTemplate(request)).ids if id_ < 3]

        harmless = await special("a", "b")
        assert harmless == ([1, 2, 1, 2] if template == CHATML else [1, 2])
        for contents in SAID:
            assert await special(*contents) == harmless, contents


async def test_an_added_token_that_is_not_special_is_text_with_one_id(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    folder = byte_tokenizer(tmp_path / "thinks")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(t, special=False) for t in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] "
        "if m.role == 'assistant' else m.content }}<|im_end|>{% endfor %}"
    )
    served.store.publish("thinks", "tokenizer", folder)
    text = "a<think>b"
    encoded = await stub.Encode(pb.EncodeRequest(model="thinks", texts=[text]))
    assert len(encoded.sequences[0].ids) == 3
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "<think>why</think>so"},
        {"role": "user", "content": "and?"},
    ]
    request = pb.ApplyChatTemplateRequest(model="thinks", messages=messages)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(messages, return_dict=True)
    assert list((await stub.ApplyChatTemplate(request)).ids) == expected["input_ids"]


async def test_many_conversations_in_one_call_are_as_one_by_one(
    stub: TokenizerServiceStub,
) -> None:
    contents = ["a", "b 1", "<|im_end|> é🙂", "\n"]
    asked = [
        pb.Conversation(
            messages=[{"role": "user", "content": content}], add_generation_prompt=number % 2 == 0
        )
        for number, content in enumerate(contents)
    ]
    answer = await stub.ApplyChatTemplates(
        pb.ApplyChatTemplatesRequest(model="bytes", conversations=asked)
    )
    for one, sequence in zip(asked, answer.sequences, strict=True):
        alone = pb.ApplyChatTemplateRequest(
            model="bytes",
            messages=one.messages,
            add_generation_prompt=one.add_generation_prompt,
        )
        assert list(sequence.ids) == list((await stub.ApplyChatTemplate(alone)).ids)
    for number in (0, 513):
        crowd = pb.ApplyChatTemplatesRequest(model="bytes", conversations=asked[:1] * number)
        await refused(stub.ApplyChatTemplates(crowd), InvalidArgument, "1 to 512")
    king = pb.Conversation(messages=[{"role": "king", "content": "x"}])
    mixed = pb.ApplyChatTemplatesRequest(model="bytes", conversations=[asked[0], king])
    await refused(stub.ApplyChatTemplates(mixed), InvalidArgument, "king")


async def test_a_stream_holds_half_characters_back(stub: TokenizerServiceStub) -> None:
    ids = (await stub.Encode(pb.EncodeRequest(model="bytes", texts=["a🙂é"]))).sequences[0].ids

    async def requests() -> AsyncIterator[pb.DecodeStreamRequest]:
        yield pb.DecodeStreamRequest(model="bytes", ids=ids[:3])
        for id_ in ids[3:-1]:
            yield pb.DecodeStreamRequest(ids=[id_])
        yield pb.DecodeStreamRequest(flush=True)

    texts = [answer.text async for answer in stub.DecodeStream(requests())]
    assert texts == ["a", "", "🙂", "", ""]
    whole = await stub.Decode(
        pb.DecodeRequest(model="bytes", sequences=[pb.TokenIds(ids=ids[:-1])])
    )
    assert list(whole.texts) == ["a🙂"]
    raw = await stub.Decode(
        pb.DecodeRequest(model="bytes", sequences=[pb.TokenIds(ids=[id_]) for id_ in ids], raw=True)
    )
    assert b"".join(raw.raw) == "a🙂é".encode()
    assert not raw.texts


async def test_bad_requests_end_in_clear_errors(stub: TokenizerServiceStub) -> None:
    def encode(**kwargs: object):
        return stub.Encode(pb.EncodeRequest(**kwargs))

    def chat(*messages: dict[str, str], model: str = "bytes"):
        return stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(model=model, messages=messages))

    error = await refused(
        encode(model="bytes", texts=["é" * 500, "x"]), InvalidArgument, "1,001 bytes"
    )
    assert error.reason == "TEXT_TOO_LONG"
    await encode(model="bytes", texts=["é" * 500])
    await refused(encode(model="", texts=["x"]), InvalidArgument, "model is empty")
    await refused(encode(model="nobody", texts=["x"]), NotFound, "nobody")
    await refused(encode(model="bytes@9", texts=["x"]), NotFound, "no version 9")
    await refused(encode(model="bytes", texts=[""] * 5000), InvalidArgument, "4096")
    await refused(chat(), InvalidArgument, "at least one message")
    await refused(chat({"role": "root", "content": ""}), InvalidArgument, "'root' is unknown")
    await refused(chat({"role": "user", "content": "x" * 1001}), InvalidArgument, "1,001 bytes")
    await refused(
        stub.Decode(pb.DecodeRequest(model="bytes", sequences=[pb.TokenIds(ids=[259])])),
        InvalidArgument,
        "outside the vocabulary of 259",
    )


async def test_kinds_without_a_tokenizer_and_bases_without_a_template(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    served.store.publish("corpus", "corpus", write_corpus(tmp_path / "corpus"))
    await refused(
        stub.Encode(pb.EncodeRequest(model="corpus", texts=["x"])), InvalidArgument, "is a corpus"
    )
    base = byte_tokenizer(tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    (base / "tokenizer_config.json").write_text("{}")
    served.store.publish("base", "model", base)
    request = pb.ApplyChatTemplateRequest(model="base", messages=[{"role": "user", "content": "x"}])
    await refused(stub.ApplyChatTemplate(request), FailedPrecondition, "no chat template")


async def test_an_alias_that_moves_is_followed(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    other = byte_tokenizer(tmp_path / "other")
    config = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(config + "\n")
    (other / "chat_template.jinja").write_text("other")
    served.store.publish("bytes", "tokenizer", other)
    request = pb.ApplyChatTemplateRequest(
        model="bytes:prod", messages=[{"role": "user", "content": "x"}]
    )
    served.store.set_alias("bytes", "prod", 1)
    assert (await stub.ApplyChatTemplate(request)).text.startswith("<|im_start|>")
    served.store.set_alias("bytes", "prod", 2)
    assert (await stub.ApplyChatTemplate(request)).text == "other"


async def test_scopes_are_needed(served: Served) -> None:
    async with served.channel(["inference"]) as channel:
        stub = TokenizerServiceStub(channel)
        call = stub.Encode(pb.EncodeRequest(model="bytes", texts=["x"]))
        await refused(call, PermissionDenied, "tokenize")


async def trained(stub: TokenizerServiceStub, **kwargs: object) -> list[pb.TrainResponse]:
    return [answer async for answer in stub.Train(pb.TrainRequest(**kwargs))]


async def test_training_publishes_once(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    served.store.publish("text", "corpus", write_corpus(tmp_path / "corpus"))
    first = (await trained(stub, corpus="text", name="mine", vocab_size=400))[-1]
    assert (first.artifact.name, first.artifact.version) == ("artifacts/mine@1", 1)
    assert first.artifact.kind == artifacts_pb2.ARTIFACT_KIND_TOKENIZER
    assert list(first.artifact.parents) == ["text@1"]
    assert first.bytes_read == first.bytes_total > 0
    again = (await trained(stub, corpus="text@1", name="mine", vocab_size=400))[-1]
    assert again.artifact == first.artifact
    assert (await trained(stub, corpus="text", name="mine", vocab_size=401))[
        -1
    ].artifact.version == 2
    ids = await stub.Encode(pb.EncodeRequest(model="mine@1", texts=["kalo 12"]))
    assert ids.sequences[0].ids
    config = (served.store.fetch("mine@1") / "tokenizer_config.json").read_text()
    assert "im_start" in config
    assert CHATML.splitlines()[0][:20] in config


async def test_training_from_a_folder_and_with_bad_input(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    folder = str(write_corpus(tmp_path / "corpus"))
    await trained(stub, corpus=folder, name="mine", vocab_size=300)
    bad = {
        "supports": {"corpus": folder, "name": "x", "vocab_size": 100_000},
        "260 to": {"corpus": folder, "name": "x", "vocab_size": 10},
        "use 1 to 64 of a-z": {"corpus": "/none/of/it", "name": "..", "vocab_size": 300},
        "corpus is empty": {"name": "x", "vocab_size": 300},
        "not a corpus": {"corpus": "bytes", "name": "x", "vocab_size": 300},
        "no train/documents": {"corpus": str(tmp_path / "bytes"), "name": "x", "vocab_size": 300},
    }
    for words, request in bad.items():
        await refused(trained(stub, **request), InvalidArgument, words)
    await refused(
        trained(stub, corpus=str(tmp_path / "none"), name="x", vocab_size=300),
        NotFound,
        "no such folder",
    )
    assert [r.name for r in served.store.list("tokenizer")] == ["bytes", "mine"]


async def test_a_caller_that_hangs_up_leaves_nothing(
    served: Served, stub: TokenizerServiceStub, tmp_path: Path
) -> None:
    folder = str(write_corpus(tmp_path / "corpus", documents=20_000))
    call = stub.Train(pb.TrainRequest(corpus=folder, name="gone", vocab_size=2000))
    async for _ in call:
        break
    call.cancel()
    # The next training waits for the one before to let go.
    await trained(stub, corpus=folder, name="next", vocab_size=261)
    assert "gone" not in [r.name for r in served.store.list("tokenizer")]
