"""Where a turn ends: an answer that is sampled as it was trained ends there, and not before.

The independent statement needs no probe: what a template makes of a whole conversation is what a
model learns to write behind the opened turn. Read id by id, it must come to a stop id when the
answer's words are out, before any of the next turn's. The gallery has the shapes in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chat_prompts import InProcess, ids_of, special_codec
from plinth.shared.errors import Internal, InvalidArgument
from plinth.tokenizer.codec import Codec
from plinth.tokenizer.templates import ENDED, FAILED, Conversation, Rendered
from plinth.tokenizer.turn_ends import turn_ends


@dataclass(frozen=True)
class Shape:
    """A template, its special tokens, end-of-sequence among them, and those that end a turn."""

    template: str
    special: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]


def by_role(user: str, assistant: str, after: str = "") -> str:
    return (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}" + user + "{% else %}"
        "" + assistant + "{% endif %}{% endfor %}" + after
    )


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content | trim + '<|eot_id|>' %}{{ bos_token + c if loop.first else c }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SHAPES = {
    "ChatML": Shape(CHATML, IM, "<|im_end|>", ("<|im_end|>",)),
    "ChatML of a base's tokenizer": Shape(CHATML, IM, "<|endoftext|>", ("<|im_end|>",)),
    "ChatML with a newline before": Shape(
        CHATML.replace("'<|im_end|>", "'\n<|im_end|>"), IM, "<|endoftext|>", ("<|im_end|>",)
    ),
    "ChatML in pieces": Shape(
        CHATML.replace("'<|im_end|>\n'", "' <|' + 'im_end' + '|>'"), IM, "", ("<|im_end|>",)
    ),
    "Qwen 3": Shape(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and "
        "loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        IM,
        "<|im_end|>",
        ("<|im_end|>",),
    ),
    "Llama 2": Shape(
        by_role("[INST] {{ m.content }} [/INST]", " {{ m.content }} {{ eos_token + bos_token }}"),
        ("<s>", "</s>"),
        "</s>",
        ("</s>",),
    ),
    "Llama 3": Shape(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>"),
        "<|end|>",
        ("<|eot_id|>",),
    ),
    "Mistral": Shape(
        by_role("[INST]{{ m.content }}[/INST]", "{{ m.content + eos_token }}"),
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        ("</s>",),
    ),
    "Gemma": Shape(
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == "
        "'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        ("<end_of_turn>",),
    ),
    "Phi 3": Shape(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}",
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        ("<|end|>",),
    ),
    "Zephyr": Shape(
        "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
        ("<s>", "</s>"),
        "</s>",
        ("</s>",),
    ),
    "DeepSeek": Shape(
        by_role("<｜User｜>{{ m.content }}", "<｜Assistant｜>{{ m.content + eos_token }}")
        + "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
    ),
    "DeepSeek Coder": Shape(
        by_role(
            "### Instruction:\n{{ m.content }}\n",
            "### Response:\n{{ m.content }}\n<|EOT|>\n",
            "{% if add_generation_prompt %}### Response:\n{% endif %}",
        ),
        ("<|begin|>", "<|end|>", "<|EOT|>"),
        "<|end|>",
        ("<|EOT|>",),
    ),
    "OpenChat": Shape(
        "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m.role.title() + ': ' + "
        "m.content + '<|end_of_turn|>' }}{% endfor %}"
        "{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}",
        ("<s>", "</s>", "<|end_of_turn|>"),
        "</s>",
        ("<|end_of_turn|>",),
    ),
    "Command R": Shape(
        by_role("<|T|><|USER|>{{ m.content }}<|END|>", "<|T|><|BOT|>{{ m.content.strip() }}<|END|>")
        + "{% if add_generation_prompt %}<|T|><|BOT|>{% endif %}",
        ("<BOS>", "<EOS>", "<|T|>", "<|USER|>", "<|BOT|>", "<|END|>"),
        "<EOS>",
        ("<|END|>",),
    ),
    "words before the token": Shape(
        by_role("<q>{{ m.content }}", "<a>{{ m.content }}</answer>\n\n<end>")
        + "{% if add_generation_prompt %}<a>{% endif %}",
        ("<bos>", "<eos>", "<q>", "<a>", "<end>"),
        "<eos>",
        ("<end>",),
    ),
    "GLM, whose turns only begin": Shape(
        by_role("<|user|>\n{{ m.content }}", "<|assistant|>\n{{ m.content }}")
        + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("[gMASK]", "<|endoftext|>", "<|user|>", "<|assistant|>"),
        "<|endoftext|>",
        ("<|user|>",),
    ),
    "no special token": Shape(
        by_role("User: {{ m.content }}\n", "Bot: {{ m.content }}\n"), ("<s>", "</s>"), "</s>", ()
    ),
}


@cache
def opened(name: str) -> tuple[Codec, tuple[int, ...]]:
    """The shape's codec and its stop ids."""
    shape = SHAPES[name]
    config = {"bos_token": shape.special[0], "eos_token": shape.eos}
    with TemporaryDirectory(prefix="plinth-test-turns-") as folder:
        codec = special_codec(Path(folder), shape.special, shape.template, **config)
    return codec, asyncio.run(turn_ends(codec, InProcess(codec)))


def turns(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_the_ends_of_the_shapes_in_use(name: str) -> None:
    codec, ids = opened(name)
    found = {codec.special_contents[id_] for id_ in ids}
    assert found == {*SHAPES[name].ends, *filter(None, [SHAPES[name].eos])}


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(set(SHAPES) - {"no special token"})),
    st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=20).filter(
        lambda text: text.strip() and "think>" not in text
    ),
)
@example("ChatML with a newline before", "Paris.")
@example("DeepSeek Coder", "Paris.")
@example("GLM, whose turns only begin", "Paris.")
def test_an_answer_sampled_as_it_was_trained_ends(name: str, answer: str) -> None:
    codec, stop_ids = opened(name)
    asked = ids_of(codec, turns("?"), open_turn=True)
    learned = ids_of(codec, turns("?", answer, "next"), open_turn=False)
    # What a chat's prompt opens and the trained text have in common, and what follows it.
    same = next((i for i, (a, b) in enumerate(zip(asked, learned, strict=False)) if a != b), None)
    sampled = learned[len(asked) if same is None else same :]
    length = next((i for i, id_ in enumerate(sampled) if id_ in stop_ids), None)
    assert length is not None
    text = codec.decode(sampled[:length], skip_special=True)
    assert answer.strip() in text
    assert "next" not in text.replace(answer, "")


def test_a_template_that_ends_an_answer_in_two_ways_is_taken_by_its_last_word(
    tmp_path: Path,
) -> None:
    """Harmony's last message ends by `<|return|>`; `<|end|>` parts what is said before it."""
    template = by_role(
        "<|start|>user<|message|>{{ m.content }}<|end|>",
        "<|start|>assistant<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}",
    )
    special = ("<|start|>", "<|message|>", "<|end|>", "<|return|>")
    codec = special_codec(tmp_path, special, template)
    (end,) = asyncio.run(turn_ends(codec, InProcess(codec)))
    assert codec.special_contents[end] == "<|return|>"


@pytest.mark.parametrize(
    "template",
    [
        "<s>{{ raise_exception('no') }}",
        "<s>{% for m in messages if m.role == 'user' %}{{ m.content }}</q>{% endfor %}",
        "<s>{% for m in messages %}{{ m.content | upper }}</q>{% endfor %}",
    ],
)
def test_a_template_that_hides_the_answer_tells_no_end(template: str, tmp_path: Path) -> None:
    codec = special_codec(tmp_path, ("<s>", "</q>", "</s>"), template, eos_token="</s>")

    async def render(asked: Sequence[Conversation]) -> list[Rendered]:
        try:
            return await InProcess(codec)(asked)
        except Exception as error:
            raise InvalidArgument(str(error), reason=FAILED) from error

    assert [codec.special_contents[i] for i in asyncio.run(turn_ends(codec, render))] == ["</s>"]


@pytest.mark.parametrize("error", [InvalidArgument("killed", reason=ENDED), Internal("broke")])
def test_a_sandbox_that_was_ended_says_nothing_about_its_template(
    error: Exception, tmp_path: Path
) -> None:
    codec = special_codec(tmp_path, IM, CHATML, eos_token="<|endoftext|>")

    async def render(asked: Sequence[Conversation]) -> list[Rendered]:
        raise error

    with pytest.raises(type(error)):
        asyncio.run(turn_ends(codec, render))
