"""Special tokens in prompts: the template's own, all of them, and never a message's.

The independent statement: whatever a template does to its messages, and whatever they say, the
special tokens of the prompt are those that the same template gives for a harmless conversation of
the same shape; and a harmless conversation has the ids that the tokenizer gives for the text that
Jinja renders, which is what transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import chat_prompts
from chat_prompts import MAX_CHARS, Messages
from plinth.shared.errors import InvalidArgument
from plinth.tokenizer import sandbox
from plinth.tokenizer.codec import Codec

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<s>", "<s>[x]")
ORDINARY = ("<think>", "</think>")
NORMALIZERS = {
    "none": None,
    "nfkc": normalizers.NFKC(),
    "lower": normalizers.Lowercase(),
    "both": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
}
HARMLESS = "界"  # no case, no compatibility form, in no token


@cache
def codec(normalizer: str, normalized: bool, trap: bool) -> Codec:
    """Byte-level, with the special tokens in the vocabulary. In a trap, merges and look-ups of
    whole words lead to them too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("|", ">"), ("i", "m"), ("<", "s"), ("<s", ">")]
    tokens = dict.fromkeys([*alphabet, *("".join(m) for m in merges), *SPECIAL])
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges if trap else merges[:-1],
        ignore_merges=trap,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = NORMALIZERS[normalizer]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=normalized) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=normalized) for t in ORDINARY])
    folder = Path(mkdtemp(prefix="plinth-test-prompts-"))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    opened = Codec(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return opened


def ids_of(codec: Codec, template: str, messages: Messages) -> list[int]:
    return chat_prompts.ids_of(codec, messages, open_turn=True, template=template)


def text_of(codec: Codec, template: str, messages: Messages) -> str:
    return sandbox.render(
        template,
        messages,
        add_generation_prompt=True,
        variables=codec.token_names,
        max_chars=MAX_CHARS,
    )


def reference_ids(codec: Codec, template: str, messages: Messages) -> list[int]:
    """As transformers has them: the rendered text, special tokens parsed wherever they stand."""
    return codec.encode(text_of(codec, template, messages), parse_special=True)


def special(codec: Codec, ids: Sequence[int]) -> list[int]:
    return [id_ for id_ in ids if id_ in codec.special_ids]


def fullwidth(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


# -- templates of a small grammar ----------------------------------------------------------------

LITERALS = (
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "<|",
    "|>",
    "im_end",
    "<s>[",
    "\n",
    "x",
    " ok ",
    "",
)
LEAVES = (
    *("m.content", "m.content", "m['role']", "'<|' + m['role'] + '|>'", "bos_token", "eos_token"),
    *("(messages | map(attribute='content') | join)", "(messages[0].content ~ m.content)"),
    *(json.dumps(literal) for literal in LITERALS),
)
OPERATIONS = (
    *("({} ~ {})", "({} ~ {})", "({} ~ {})", "({} | trim)", "({}).strip()", "({} | upper)"),
    *("({} | lower)", "({} | replace('x', ''))", "({}).replace('x', '<|')", "({}).split('x')[0]"),
    *("({} | replace('<|im_end|>', ''))", "({})[{n}:]", "({})[:{n}]", "({}).split('</think>')[-1]"),
    *("({} if '</think>' in m.content else {})", "[{}, {}] | join('|')", "({} | string)"),
    "({} | replace('x', '<|im_end|>'))",
)
TEMPLATE = "{%% for m in messages %%}%s{{ %s }}%s{%% endfor %%}{%% set m = messages[-1] %%}{{ %s }}"


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(LEAVES))
    operation = draw(st.sampled_from(OPERATIONS))
    operands = [draw(expressions(depth - 1)) for _ in range(operation.count("{}"))]
    return operation.format(*operands, n=draw(st.integers(-6, 14)))


@st.composite
def templates(draw: st.DrawFn) -> str:
    before = draw(st.sampled_from(["", "<|im_start|>{{ m.role }}\n", "<|im_start|>", "<|"]))
    after = draw(st.sampled_from(["", "<|im_end|>\n", "|>"]))
    return TEMPLATE % (before, draw(expressions()), after, draw(expressions()))


FRAGMENTS = (
    *SPECIAL,
    *map(fullwidth, SPECIAL[:3]),
    *map(str.upper, SPECIAL[:3]),
    *ORDINARY,
    *("<|im_", "end|>", "im_end", "|>", "<|", "user", "<s", ">", "[", "x", "x]", " ", "\n", "é"),
    *("<|im_x", "<x|im_end|>", "\U000f0000", "\ufdd0"),
)
hostile = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)
harmless = st.lists(st.sampled_from([HARMLESS, " ", "\n"]), max_size=6).map("".join)
thoughtful = st.lists(st.sampled_from(["界", "x", " ", "\n", *ORDINARY, "a<b|c>"]), max_size=6)
normalizer_names = st.sampled_from(sorted(NORMALIZERS))
several = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


def conversations(contents: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(contents, min_size=1, max_size=3)


def conversation(contents: Sequence[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def same_shape(content: str) -> str:
    """What a template of the grammar can tell about a content: its spaces, its x, its </think>."""
    parts = content.split("</think>")
    blanked = ("".join(c if c.isspace() or c == "x" else HARMLESS for c in p) for p in parts)
    return "</think>".join(blanked)


# A role's token in pieces, and messages that get shorter: no place in the text proves anything.
SHORTENING = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content | replace('x', '') }}{% endfor %}"
)


@settings(max_examples=250, **several)
@given(normalizer_names, st.booleans(), st.booleans(), templates(), conversations(hostile))
@example("none", False, False, SHORTENING, ["<|xuser|>"])
@example("none", False, False, SHORTENING, ["a|xb", "xx<|"])
@example("none", False, False, SHORTENING, ["<|user|>", "<|im_xend|>"])
def test_a_prompt_has_the_special_tokens_of_a_harmless_one(
    normalizer: str, normalized: bool, trap: bool, template: str, contents: list[str]
) -> None:
    check_hostile(normalizer, normalized, trap, template, contents)


@pytest.mark.slow
@settings(max_examples=20_000, **several)
@given(normalizer_names, st.booleans(), st.booleans(), templates(), conversations(hostile))
def test_a_prompt_has_the_special_tokens_of_a_harmless_one_many_times(
    normalizer: str, normalized: bool, trap: bool, template: str, contents: list[str]
) -> None:
    check_hostile(normalizer, normalized, trap, template, contents)


def check_hostile(
    normalizer: str, normalized: bool, trap: bool, template: str, contents: list[str]
) -> None:
    honest = codec(normalizer, normalized, trap=False)
    shape = conversation([same_shape(content) for content in contents])
    expected = special(honest, reference_ids(honest, template, shape))
    opened = codec(normalizer, normalized, trap)
    try:
        ids = ids_of(opened, template, conversation(contents))
    except InvalidArgument as error:
        assert error.reason == "SPECIAL_TOKEN_IN_CONTENT"
        return
    if normalizer == "none":
        assert opened.decode(ids) == text_of(opened, template, conversation(contents))
    found = special(opened, ids)
    if any("x" in content or "</think>" in content for content in contents):
        # A template that writes pieces of tokens where a message says so proves nothing by them.
        left = iter(expected)
        assert all(id_ in left for id_ in found)
    else:
        assert found == expected


@settings(max_examples=150, **several)
@given(normalizer_names, st.booleans(), templates(), conversations(harmless))
def test_a_harmless_conversation_has_transformers_ids(
    normalizer: str, normalized: bool, template: str, contents: list[str]
) -> None:
    opened = codec(normalizer, normalized, trap=False)
    messages = conversation(contents)
    assert ids_of(opened, template, messages) == reference_ids(opened, template, messages)


# What chat templates in use do: tokens whole or by the role, messages trimmed, thoughts cut out.
USUAL = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'].split('</think>')"
    "[-1].lstrip('\n') if '</think>' in m.content else m.content) + '<|im_end|>' }}{% endfor %}",
    "{% for m in messages %}{% if '<think>' in m.content %}{{ '<think>' ~ m.content ~ '</think>' }}"
    "{% endif %}{{ bos_token ~ m.content | replace('x', '') ~ eos_token }}{% endfor %}",
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else eos_token }}",
    "{% for m in messages %}<|im_start|>{{ m.content.replace('<|im_end|>', '') ~ '<|im_end|>' }}"
    "{{ '<s>' if m.content.startswith('<|im_start|>') else '<s>' }}{% endfor %}",
    "{% macro turn(m) %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endmacro %}"
    "{% set all %}{% for m in messages %}{{ turn(m) }}{% endfor %}{% endset %}{{ all | trim }}",
)


@settings(max_examples=100, **several)
@given(
    normalizer_names,
    st.booleans(),
    st.sampled_from(USUAL),
    conversations(thoughtful.map("".join)),
)
def test_usual_templates_give_transformers_ids_also_for_thoughts(
    normalizer: str, normalized: bool, template: str, contents: list[str]
) -> None:
    opened = codec(normalizer, normalized, trap=False)
    messages = conversation(contents)
    assert ids_of(opened, template, messages) == reference_ids(opened, template, messages)


@settings(max_examples=150, **several)
@given(
    normalizer_names,
    st.booleans(),
    st.booleans(),
    st.sampled_from(USUAL),
    conversations(hostile),
)
@example("none", False, False, USUAL[4], ["a<|im_end|>b"])
def test_usual_templates_refuse_nothing(
    normalizer: str, normalized: bool, trap: bool, template: str, contents: list[str]
) -> None:
    opened = codec(normalizer, normalized, trap)
    honest = codec(normalizer, normalized, trap=False)
    shape = conversation([same_shape(content) for content in contents])
    ids = ids_of(opened, template, conversation(contents))
    assert special(opened, ids) == special(honest, reference_ids(honest, template, shape))
