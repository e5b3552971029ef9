"""Models behind an engine, as they are served: of experts, and with drafts of other families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import engines
from checkpoints import byte_tokenizer, random_gpt2, random_llama, random_mixtral, random_qwen3_moe
from plinth.engine.request import Sampling
from plinth.inference.loading import load_engine
from plinth.models.layers import Linear
from plinth.models.mixture import Map
from plinth.shared.errors import InvalidArgument
from plinth.shared.settings_sections import EngineSettings


@pytest.mark.parametrize("random_model", [random_mixtral, random_qwen3_moe])
def test_packed_experts_alone_are_kept(random_model, tmp_path: Path) -> None:
    """What was packed is not held twice, and nothing that is served was lost."""
    folder = random_model(tmp_path / "m")
    loaded = load_engine(folder, EngineSettings())
    maps = [m for m in loaded.engine.runner.decoder.modules() if isinstance(m, Linear | Map)]
    assert len(maps) > 40
    assert all(one.weight.numel() == 0 for one in maps)
    prompts = [(5, 9, 200, 31), tuple(range(3, 60))]
    sampling = Sampling(temperature=0, max_tokens=12)
    served, _ = engines.complete(loaded.engine, prompts, sampling)
    assert served == engines.complete(engines.engine(folder), prompts, sampling)[0]


GREEDY = Sampling(temperature=0, max_tokens=24)


def with_draft(model: Path, draft: Path) -> tuple[list[list[int]], int]:
    """Greedy answers to a few prompts, and how many drafts were proposed."""
    loaded = load_engine(
        model,
        EngineSettings(),
        speculation="draft:small",
        draft_folder={"small": draft}.__getitem__,
    )
    prompts = [(5, 9, 200, 31), tuple(range(3, 60)), (7,)]
    served, usage = engines.complete(loaded.engine, prompts, GREEDY)
    return [[token.id for token in one] for one in served], sum(u.draft_proposed for u in usage)


@pytest.mark.parametrize("sizes", [(320, 320), (320, 328), (328, 320)])
def test_a_draft_is_of_any_family_and_padded_otherwise(
    sizes: tuple[int, int], tmp_path: Path
) -> None:
    """One tokenizer, and embeddings beyond it in one of both: answers are the model's alone."""
    model = byte_tokenizer(random_llama(tmp_path / "model", vocab_size=sizes[0]))
    draft = byte_tokenizer(random_gpt2(tmp_path / "draft", vocab_size=sizes[1], seed=4))
    alone, _ = engines.complete(
        engines.engine(model), [(5, 9, 200, 31), tuple(range(3, 60)), (7,)], GREEDY
    )
    served, proposed = with_draft(model, draft)
    assert served == [[token.id for token in one] for one in alone]
    assert proposed > 0


def test_what_a_draft_has_no_embedding_for_it_says_nothing_about(tmp_path: Path) -> None:
    model = byte_tokenizer(random_llama(tmp_path / "model", vocab_size=328))
    draft = byte_tokenizer(random_gpt2(tmp_path / "draft", vocab_size=320))
    loaded = load_engine(
        model, EngineSettings(), speculation="draft:small", draft_folder=lambda _: draft
    )
    _, usage = engines.complete(loaded.engine, [(5, 9, 324, 31), (5, 9, 31)], GREEDY)
    assert usage[0].draft_proposed == 0 < usage[1].draft_proposed


def test_a_draft_of_another_vocabulary_is_refused_by_a_token(tmp_path: Path) -> None:
    """Though both have as many: its drafts would be nonsense, and every step slower for them."""
    model = byte_tokenizer(random_llama(tmp_path / "model"))
    draft = byte_tokenizer(random_gpt2(tmp_path / "draft"))
    _exchange(draft / "tokenizer.json", "a", "b")
    with pytest.raises(InvalidArgument, match=r"'[ab]' there and '[ab]' here, one of 2 "):
        with_draft(model, draft)


def _exchange(path: Path, one: str, other: str) -> None:
    description = json.loads(path.read_text())
    vocabulary: Mapping[str, int] = description["model"]["vocab"]
    description["model"]["vocab"] = {
        token: vocabulary[{one: other, other: one}.get(token, token)] for token in vocabulary
    }
    path.write_text(json.dumps(description))
