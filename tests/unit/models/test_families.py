"""Every family against transformers: logits, what is saved, loss and gradients, greedy tokens.

The configurations are drawn (`families.configurations`); two of each family are in the fast suite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

import engines
import families
from family_models import assert_near, gradients_of, ids_of, logits_of, made
from plinth.engine.request import Sampling
from plinth.models.hf.folder import is_turned
from plinth.models.weights import load_decoder, save_decoder, weights_digest
from plinth.trainer.objectives.batch import Batch, nll_sum, plain_positions

NEAR_TIE = 1e-5
SHORT, LONG = 24, families.CONTEXT
every_configuration = pytest.mark.parametrize(
    ("family", "number"),
    [
        *families.numbered(slow=False),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in families.numbered(slow=True)),
    ],
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@every_configuration
def test_logits_are_those_of_transformers_which_opens_what_is_saved(
    family: str, number: int, tmp_path: Path
) -> None:
    model, decoder = made(family, number, tmp_path / "in")
    save_decoder(decoder, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs, kept = model.state_dict(), again.state_dict()
    assert theirs.keys() == kept.keys()
    assert all(torch.equal(theirs[name], kept[name]) for name in theirs)
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "in")
    config = decoder.config
    assert load_decoder(tmp_path / "out").config == config
    for t in (SHORT, LONG):
        ids_bt = ids_of(2, t)
        with torch.no_grad():
            truth = model(ids_bt).logits
            torch.testing.assert_close(logits_of(decoder, ids_bt), truth, atol=1e-4, rtol=0)
            torch.testing.assert_close(again(ids_bt).logits, truth, atol=1e-5, rtol=0)


@every_configuration
def test_loss_and_gradients_of_a_batch_are_those_of_transformers(
    family: str, number: int, tmp_path: Path
) -> None:
    """The loss of the trainer's objectives, some tokens not counted."""
    model, decoder = made(family, number, tmp_path)
    ids_bt = ids_of(3, SHORT + 1, seed=2)
    learn_bt = torch.rand(3, SHORT, generator=torch.Generator().manual_seed(3)) < 0.7
    inputs_bt, targets_bt = ids_bt[:, :-1], ids_bt[:, 1:]
    batch = Batch(inputs_bt, targets_bt, plain_positions(3, SHORT), learn_bt)
    loss = nll_sum(decoder, batch) / batch.tokens
    loss.backward()
    truth = F.cross_entropy(model(inputs_bt).logits[learn_bt], targets_bt[learn_bt])
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    whole = float(
        torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
    )
    theirs = gradients_of(model, family)
    for name, parameter in decoder.named_parameters():
        wanted = theirs.pop(name)
        wanted = wanted.t() if is_turned(family, name) else wanted
        # Of a bias of keys that do not turn it is zero, since each score changes by as much.
        assert_near(parameter.grad, wanted, 1e-4, noise=1e-6 * whole)
    assert not theirs


def prompts(longest: int) -> list[tuple[int, ...]]:
    """16 of mixed lengths."""
    dice = random.Random(5)
    lengths = [1, longest, *(dice.randrange(1, longest + 1) for _ in range(14))]
    return [tuple(dice.randrange(3, families.VOCAB) for _ in range(n)) for n in lengths]


def near_ties(
    model: transformers.PreTrainedModel, prompt: tuple[int, ...], answer: list[int]
) -> int:
    """Tokens that are not the model's own choice after those before, but its equal within 1e-5."""
    with torch.no_grad():
        logits_tv = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
    near = 0
    for chosen, logits_v in zip(answer, logits_tv, strict=True):
        best = int(logits_v.argmax())
        if best != chosen:
            assert float(logits_v[best] - logits_v[chosen]) <= NEAR_TIE
            near += 1
    return near


@every_configuration
def test_greedy_tokens_served_together_are_those_of_transformers(
    family: str, number: int, tmp_path: Path
) -> None:
    """Each is transformers' own choice after the same tokens, or its equal within 1e-5."""
    model, decoder = made(family, number, tmp_path)
    asked = prompts(families.ORIGINAL - 32)
    sampling = Sampling(temperature=0, max_tokens=32)
    engine = engines.engine(decoder, block_size=4, blocks=400, chunk=29)
    answers, _ = engines.complete(engine, asked, sampling)
    near = 0
    for prompt, answer in zip(asked, answers, strict=True):
        ids = [token.id for token in answer]
        assert len(ids) == 32
        near += near_ties(model, prompt, ids)
    assert near <= 1
    assert engine.pool.live == 0


def turned_by(rule: str) -> list[tuple[str, int]]:
    """The configurations with such a rope."""
    return [
        (family, number)
        for family, number in families.numbered(slow=True) + families.numbered(slow=False)
        if rule in str(families.configurations(family)[number].get("rope_parameters"))
    ]


LONGROPE = turned_by("longrope")
# A file of Gemma 3 says the whole context, which no longer one can follow.
STRETCHED = [
    (family, number)
    for rule in ("linear", "dynamic", "yarn")
    for family, number in turned_by(f"'{rule}'")
    if family != "gemma3_text"
]


def test_every_rope_that_has_two_ranges_is_among_them() -> None:
    assert {family for family, _ in LONGROPE} >= {"llama", "qwen3", "phi3", "gpt_neox"}


@pytest.mark.parametrize(
    ("family", "number"),
    [
        pytest.param(family, number, marks=[] if family == "phi3" else pytest.mark.slow)
        for family, number in LONGROPE
    ],
)
def test_sequences_beyond_the_training_length(family: str, number: int, tmp_path: Path) -> None:
    """In training and served: they turn by the long factors from their first token on, as those of
    transformers do whose prompt is as long. Beside them short ones are served."""
    model, decoder = made(family, number, tmp_path)
    ids_bt = ids_of(2, LONG)
    batch = Batch(ids_bt[:, :-1], ids_bt[:, 1:], plain_positions(2, LONG - 1))
    with torch.no_grad():
        truth = F.cross_entropy(model(ids_bt[:, :-1]).logits.flatten(0, 1), ids_bt[:, 1:].flatten())
        loss = nll_sum(decoder, batch) / batch.tokens
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    long = [tuple(ids_of(1, n, seed=n)[0].tolist()) for n in range(49, 57)]
    sampling = Sampling(temperature=0, max_tokens=8)
    engine = engines.engine(decoder, block_size=4, blocks=400, chunk=29)
    asked = [prompt for pair in zip(long, prompts(40), strict=False) for prompt in pair]
    answers, _ = engines.complete(engine, asked, sampling)
    near = 0
    for prompt, answer in zip(asked, answers, strict=True):
        near += near_ties(model, prompt, [token.id for token in answer])
    assert near <= 1


def test_what_is_packed_turns_by_its_own_length(tmp_path: Path) -> None:
    """Segments of 30 tokens and of 26 in a row of 56, one of 55 and a token of padding in another:
    the loss is transformers' of each alone."""
    model, decoder = made("phi3", dict(LONGROPE)["phi3"], tmp_path)
    ids_bt = ids_of(2, 57)
    inputs_bt, targets_bt = ids_bt[:, :-1], ids_bt[:, 1:]
    positions_bt = torch.stack([torch.cat([torch.arange(30), torch.arange(26)]), torch.arange(56)])
    segments_bt = torch.tensor([[1] * 30 + [2] * 26, [1] * 55 + [0]])
    positions_bt[1, 55] = 0
    batch = Batch(inputs_bt, targets_bt, positions_bt, segments_bt > 0, segments_bt)
    truth = torch.zeros(())
    with torch.no_grad():
        for row, here in ((0, slice(0, 30)), (0, slice(30, 56)), (1, slice(0, 55))):
            logits_tv = model(inputs_bt[row : row + 1, here]).logits[0]
            truth += F.cross_entropy(logits_tv, targets_bt[row, here], reduction="sum")
        assert nll_sum(decoder, batch).item() == pytest.approx(truth.item(), rel=1e-5)


@pytest.mark.parametrize(("family", "number"), STRETCHED)
def test_a_context_reaches_as_far_as_its_factor(family: str, number: int, tmp_path: Path) -> None:
    """Beyond max_position_embeddings, which is what such a model was trained with. Of dynamic NTK
    transformers stretches by each sequence's own length: the whole context's here."""
    model, decoder = made(family, number, tmp_path)
    rope = families.configurations(family)[number]["rope_parameters"]
    trained = rope.get("original_max_position_embeddings", families.CONTEXT)
    context = decoder.config.context
    assert context == max(families.CONTEXT, int(rope["factor"] * trained))
    ids_bt = ids_of(1, context + 1)
    batch = Batch(ids_bt[:, :-1], ids_bt[:, 1:], plain_positions(1, context))
    with torch.no_grad():
        logits = model(ids_bt[:, :-1]).logits
        torch.testing.assert_close(logits_of(decoder, ids_bt[:, :-1]), logits, atol=1e-4, rtol=0)
        truth = F.cross_entropy(logits[0], ids_bt[0, 1:])
        loss = nll_sum(decoder, batch) / batch.tokens
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    if rope["rope_type"] == "dynamic":  # transformers' own choices turn with each token
        return
    prompt = tuple(ids_bt[0, : context - 8].tolist())
    engine = engines.engine(decoder, block_size=4, blocks=400, chunk=29)
    answers, _ = engines.complete(engine, [prompt], Sampling(temperature=0, max_tokens=8))
    ids = [token.id for token in answers[0]]
    assert len(ids) == 8
    assert near_ties(model, prompt, ids) <= 1


def test_every_rule_of_a_factor_is_among_them() -> None:
    ropes = [families.configurations(family)[number] for family, number in STRETCHED]
    assert {keys["rope_parameters"]["rope_type"] for keys in ropes} == {"linear", "dynamic", "yarn"}
