"""Everyone who looks at an answer sees the same tokens, the last of them the one that ends it.

The independent statement needs no mask: an answer is what its family's template writes between the
opened turn and the end of the words, and then the token that this family calls a turn's end. So
what is learned, compared, scored and sampled, read as text, is the answer's words and that token,
for chats of any kind; and transformers' own rendering up to that token has the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_families import FAMILIES, Family
from chat_prompts import TokenizerInProcess
from checkpoints import random_llama
from plinth.reward.texts import Texts
from plinth.trainer.data.corpus import write_corpus
from plinth.trainer.data.documents import Document
from plinth.trainer.data.selected import Scored, best_documents, pair_documents
from plinth.trainer.data.shards import Split
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.trainer.loop.setup import open_decoder
from plinth.trainer.objectives.batch import Batch
from plinth.trainer.objectives.pairs import Pairs
from plinth.trainer.objectives.sft import SupervisedFineTuning
from plinth.trainer.policy.model import RolloutBatch
from plinth.trainer.policy.prompts import prompts_of
from plinth.trainer.policy.rollouts import Rollout
from plinth.v1 import chat_pb2
from plinth.v1 import rewards_pb2 as pb

Chat = tuple[tuple[str, str], ...]
LENGTH = 512

words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Co", "Cc"]), min_size=1, max_size=12
).filter(lambda text: text.strip() and not set("<|[]>#") & set(text))


def talks(*, least: int = 1) -> st.SearchStrategy[Chat]:
    """Questions and answers in turn, an answer last."""
    exchanges = st.lists(st.tuples(words, words), min_size=least, max_size=3)
    return exchanges.map(
        lambda made: tuple(
            turn for question, said in made for turn in (("user", question), ("assistant", said))
        )
    )


@cache
def opened(name: str) -> tuple[Path, TokenizerInProcess]:
    folder = Path(mkdtemp(prefix="plinth-test-family-"))
    return folder, FAMILIES[name].opened(folder)


@cache
def base() -> Path:
    """A model whose files name no end but id 7."""
    folder = random_llama(Path(mkdtemp(prefix="plinth-test-base-")), layers=1)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"eos_token_id": 2', '"eos_token_id": 319'))
    return folder


def dataset(name: str, documents: Sequence[Document], out: Path) -> Path:
    folder, tokenizer = opened(name)
    write_corpus(iter(documents), out / "corpus", source="here", validation_fraction=0)
    renderer = tokenizer.renderer()
    tokenize_corpus(
        out / "corpus",
        folder,
        out / "dataset",
        tokenizer_ref="t@1",
        tokenizer_digest="sha256:0",
        render=renderer.chats("t@1"),
        stop_ids=renderer.stop_ids,
    )
    return out / "dataset"


def said(family: Family, answer: str, last: bool = True) -> str:
    """As the definition has it; between two turns a template of words writes no end."""
    end = family.end if last else family.end.removesuffix("</s>" if "\n" in family.end else "")
    return (answer.strip() if family.trimmed else answer) + end


def text_of(name: str, ids: Sequence[int]) -> str:
    return opened(name)[1].codec.decode(ids)


def learned(batch: Batch) -> list[list[int]]:
    """The runs of targets that count, of the first row."""
    runs: list[list[int]] = []
    assert batch.learn_bt is not None
    flags, targets = batch.learn_bt[0].tolist(), batch.targets_bt[0].tolist()
    for at, flag in enumerate(flags):
        if flag:
            if not at or not flags[at - 1]:
                runs.append([])
            runs[-1].append(targets[at])
    return runs


def rewarded(name: str, chat: Chat, **more: Any) -> tuple[int, ...]:
    """What a reward model of the reward stage reads of a text answer."""

    async def tokenizer(_: object) -> TokenizerInProcess:
        return opened(name)[1]

    texts = Texts(SimpleNamespace(tokenizer=tokenizer), None)  # type: ignore[arg-type]
    messages = [chat_pb2.ChatMessage(role=role, content=text) for role, text in chat[:-1]]
    item = pb.RewardItem(
        prompt_messages=pb.RewardMessages(messages=messages), response_text=chat[-1][1], **more
    )
    asked = SimpleNamespace(items=[item], tokenizer="")
    (ids,) = asyncio.run(texts.sequences(asked, SimpleNamespace(ref="t@1")))  # type: ignore[arg-type]
    return ids


@settings(max_examples=25)
@given(st.sampled_from(sorted(FAMILIES)), talks(), words)
@example("Plinth", (("user", "?"), ("assistant", "Paris.")), "Rome")
@example("Phi 3", (("user", "?"), ("assistant", "a"), ("user", "!"), ("assistant", "b")), "c")
@example("GLM 4, whose turns only begin", (("user", "?"), ("assistant", "a")) * 2, "c")
def test_all_see_one_answer(name: str, chat: Chat, other: str) -> None:
    family, answer = FAMILIES[name], chat[-1][1]
    other = f"{other}!" if other.strip() == answer.strip() else other
    _, tokenizer = opened(name)
    with TemporaryDirectory(prefix="plinth-test-ends-") as folder:
        documents = [Document(messages=chat)]
        chats = Split(dataset(name, documents, Path(folder) / "sft"), "train")
        pair = Document(messages=chat, rejected=other, source="rule:x")
        pairs = Split(dataset(name, [pair], Path(folder) / "pairs"), "train")
        # What fine-tuning learns.
        sft = SupervisedFineTuning(chats, chats, LENGTH, 0, 0)
        answers = [content for role, content in chat if role == "assistant"]
        runs = [text_of(name, run) for run in learned(sft.batch([0]))]
        wanted = [said(family, one, at == len(answers) - 1) for at, one in enumerate(answers)]
        assert runs == wanted
        # What pairs are compared by and a reward model is trained at: both sides end alike.
        batch = Pairs(pairs, LENGTH, 0).batch([0])
        sides = []
        for row, text in enumerate((answer, other)):
            last = int(batch.last_b[row])
            ids = batch.ids_bt[row, : last + 1].tolist()
            compared = batch.ids_bt[row][batch.answer_bt[row]].tolist()
            assert text_of(name, compared) == said(family, text)
            assert ids[-len(compared) :] == compared
            sides.append((ids, compared))
        # What the reward stage reads of the texts.
        for (ids, _), text in zip(sides, (answer, other), strict=True):
            assert list(rewarded(name, (*chat[:-1], ("assistant", text)))) == ids
        # Where a policy's rollout ends, and where its judge reads: a model that has learned the
        # dataset goes on behind the answer as the template does, unless it is stopped.
        ends = open_decoder(base(), chats.info).config.eos_ids
        assert set(ends) == {319, *chats.info.stop_ids}
        (ids, compared) = sides[0]
        prompt = ids[: -len(compared)]
        going_on = [*compared, *tokenizer.codec.encode(family.behind, parse_special=True), 66, 67]
        length = next(at for at, id_ in enumerate(going_on) if id_ in ends) + 1
        rollout = Rollout(
            0,
            0,
            tuple(prompt),
            tuple(going_on[:length]),
            0,
            (0.0,) * length,
            (),
            0,
            "",
            True,
            length,
        )
        judged = RolloutBatch.of([rollout])
        assert judged.ids_bt[0, : int(judged.last_b[0]) + 1].tolist() == ids
        if len(chat) == 2:
            assert prompts_of(pairs, LENGTH) == [tuple(prompt)]
        del chats, pairs, sft, batch


@settings(max_examples=40)
@given(st.sampled_from(sorted(FAMILIES)), talks())
def test_transformers_rendering_up_to_the_end_token_has_the_same_ids(name: str, chat: Chat) -> None:
    family, (folder, _) = FAMILIES[name], opened(name)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = [{"role": role, "content": content} for role, content in chat]
    rendered = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    end = theirs.convert_tokens_to_ids("</s>" if "\n" in family.end else family.end)
    at = max((at for at, id_ in enumerate(rendered) if id_ == end), default=-1)
    unwritten = name.startswith(("GLM", "no special"))  # the end is not in the template
    assert list(rewarded(name, chat)) == ([*rendered, end] if unwritten else rendered[: at + 1])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_answer_that_was_cut_off_has_no_end_token(name: str) -> None:
    chat = (("user", "?"), ("assistant", "half of"))
    whole, cut = rewarded(name, chat), rewarded(name, chat, response_cut_off=True)
    assert cut == whole[:-1]
    assert cut[-1] not in opened(name)[1].codec.special_ids
    # Samples of which one was cut off, made into a corpus of pairs, and of the best.
    scored = [
        Scored(chat[:-1], "half of", 1.0, cut_off=True),
        Scored(chat[:-1], "all", 0.0),
    ]
    with TemporaryDirectory(prefix="plinth-test-cut-") as folder:
        pairs = Split(dataset(name, list(pair_documents(scored)), Path(folder) / "p"), "train")
        batch = Pairs(pairs, LENGTH, 0).batch([0])
        rows = [
            ids[: last + 1].tolist()
            for ids, last in zip(batch.ids_bt, batch.last_b.tolist(), strict=True)
        ]
        assert rows == [list(cut), list(rewarded(name, (*chat[:-1], ("assistant", "all"))))]
        best = Split(dataset(name, list(best_documents(scored)), Path(folder) / "b"), "train")
        sft = SupervisedFineTuning(best, best, LENGTH, 0, 0)
        (run,) = learned(sft.batch([0]))
        assert run == list(cut)[-len(run) :]
        del pairs, batch, best, sft
