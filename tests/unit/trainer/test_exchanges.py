"""Long chats by their exchanges are what the definition says of them, whatever the template."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from chat_prompts import TokenizerInProcess, special_codec
from plinth.shared.answer_spans import answer_spans
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.tokenize import Messages
from plinth.trainer.exchanges import LongChat, Turn

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>")
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}"
CHATML = EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + OPEN
# Written by exchanges, or so that it can be told that they are not.
TEMPLATES = {
    "ChatML": CHATML,
    "a default system message": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good."
    "<|im_end|>\n{% endif %}" + CHATML,
    "trimmed": CHATML.replace("m.content", "m.content | trim"),
    "Llama 2": EACH + "{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} "
    "{{ m.content }} </s>{% endif %}{% endfor %}",
    "Phi 3, which says that a chat ends": EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
    "{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt else '</s>' }}",
    "GLM, whose next turn ends one": EACH + "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "no special token": EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "roles must alternate": "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user')"
    "!= (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{% endfor %}"
    + CHATML,
    "numbered turns": EACH + "{{ loop.index }}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + OPEN,
    "the system message before the last turn": EACH + "{% if loop.last and messages[0].role == "
    "'system' %}{{ messages[0].content }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}" + OPEN,
    "thoughts of the last turn only": EACH + "<|im_start|>{{ m.role }}\n{{ m.content if loop.last "
    "else m.content.split('t')[-1] }}<|im_end|>\n{% endfor %}" + OPEN,
    "another header late in a conversation": CHATML.replace(
        OPEN, OPEN.replace("assistant", "{{ 'assistant' if messages | length < 9 else 'bot' }}")
    ),
    "another end late in a conversation": CHATML.replace(
        "<|im_end|>\n", "<|im_end|>{{ ' ' if loop.index > 11 }}\n"
    ),
}


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Counting:
    folder = tmp_path_factory.mktemp("tokenizer")
    special_codec(folder, SPECIAL, TEMPLATES[request.param], eos_token="</s>", bos_token="<s>")
    return Counting(folder)


class Counting(TokenizerInProcess):
    """Counts the characters that it is asked to render."""

    asked = 0

    async def _apply(self, _: str, turns: Sequence[Turn]) -> tuple[list[list[int]], list[int]]:
        self.asked += sum(len(content) for messages, _ in turns for _, content in messages)
        try:
            return await super()._apply(_, turns)
        except TemplateError as error:  # as the stage says it
            raise InvalidArgument(f"the chat template: {error}") from error

    def ids(self, *turns: Turn) -> tuple[list[list[int]], list[int]]:
        return asyncio.run_coroutine_threadsafe(self._apply("", turns), self._loop).result()


def by_definition(stage: Counting, chat: Messages) -> tuple[list[int], list[int]]:
    """Each answer's place from two renderings of all that came before it."""
    answers = [n for n, (role, _) in enumerate(chat) if role == "assistant"]
    (whole, *prefixes), stop_ids = stage.ids(
        (chat, False), *((chat[: n + upto], not upto) for n in answers for upto in (0, 1))
    )
    turns = list(zip(prefixes[::2], prefixes[1::2], strict=True))
    kept, spans = answer_spans(whole, turns, stop_ids)
    learned = {at for span in spans for at in range(span.begin, span.end)}
    return kept, [int(at in learned) for at in range(len(kept))]


def rendered(stage: Counting, chat: Messages) -> tuple[list[int], list[int]]:
    ((ids, mask),) = stage.renderer().chats("m")([chat])
    return ids, mask


WORDS = st.sampled_from(["a", " b", "what?\n", "it is so. ", "then t", "<|im_end|>", "x\n\ny", "é"])
EXCHANGES = st.lists(
    st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=2)), min_size=3, max_size=7
)


@settings(max_examples=5, deadline=None)
@given(
    system=st.none() | WORDS,
    exchanges=EXCHANGES,
    doubled=st.booleans(),
    unanswered=st.booleans(),
)
def test_exchanges_give_what_the_definition_gives(
    stage: Counting,
    system: str | None,
    exchanges: list[tuple[str, list[str]]],
    doubled: bool,
    unanswered: bool,
) -> None:
    turns = [] if system is None else [("system", system)]
    for asked, answers in exchanges:
        turns.append(("user", asked))
        turns += [("assistant", answer) for answer in (answers if doubled else answers[:1])]
    chat = (*turns, ("user", "And?")) if unanswered else tuple(turns)
    try:
        wanted = by_definition(stage, chat)
    except InvalidArgument as refused:
        with pytest.raises(InvalidArgument) as caught:
            rendered(stage, chat)
        assert caught.value.message.startswith(refused.message)
        return
    assert rendered(stage, chat) == wanted


LINEAR = {
    "ChatML",
    "a default system message",
    "trimmed",
    "Llama 2",
    "Phi 3, which says that a chat ends",
    "GLM, whose next turn ends one",
    "no special token",
    "roles must alternate",
}


@pytest.mark.parametrize("stage", sorted(LINEAR), indirect=True)
def test_twice_as_long_a_chat_costs_twice_as_much(stage: Counting) -> None:
    """In characters that are rendered; by the definition it would be four times as much."""

    def cost(exchanges: int) -> int:
        turns = [("user", f"question {n} " * 4) for n in range(exchanges)]
        chat = tuple(one for t in turns for one in (t, ("assistant", "an answer of some length")))
        before = stage.asked
        rendered(stage, chat)
        return (stage.asked - before) // sum(len(content) for _, content in chat)

    assert cost(20) <= 9
    assert cost(40) <= 9


def test_short_chats_and_odd_ones_are_not_taken_apart() -> None:
    turns = (("user", "q"), ("assistant", "a"))
    assert LongChat.of(turns * 4) is None
    assert LongChat.of(turns * 5) is not None
    assert LongChat.of((("user", "q"),) * 30) is None
    assert LongChat.of((("assistant", "a"),) * 30) is None
