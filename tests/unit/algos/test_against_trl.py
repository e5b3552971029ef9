"""Losses, advantages and KL against TRL's own code on the same batch.

Runs in the peers' environments only (`ops/bench/peers.sh`), each of which has a TRL:

    PYTHONPATH=services:tests .bench/trl/bin/python -m pytest tests/unit/algos/test_against_trl.py

With PLINTH_KEEP_FIGURES=1 what it sees is kept for `test_trl_figures.py`, which runs everywhere.
"""

from __future__ import annotations

import pytest

trl = pytest.importorskip("trl")

import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from checkpoints import random_llama  # noqa: E402
from plinth.models.weights import load_decoder  # noqa: E402
from plinth.trainer.objectives.pairs import PairBatch, answer_logprobs  # noqa: E402
from trl_figures import agree  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS, PAIRS = 320, 4
COMMON = {
    "per_device_train_batch_size": PAIRS,
    "max_steps": 1,
    "learning_rate": 0.0,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 0,
}


def words():
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="w0", eos_token="w0", padding_side="left"
    )


def rows(count=PAIRS):
    """Prompts of 4 words and answers of 5 to 20; only the end is w0."""
    chance = torch.Generator().manual_seed(0)

    def text(low, high, end=""):
        length = int(torch.randint(low, high, (1,), generator=chance))
        ids = torch.randint(1, WORDS, (length,), generator=chance).tolist()
        return " ".join(f"w{i}" for i in ids) + end

    return [
        {"prompt": text(4, 5) + " ", "chosen": text(5, 20, " w0"), "rejected": text(5, 20, " w0")}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [
        random_llama(tmp_path_factory.mktemp("m") / str(seed), layers=2, seed=seed)
        for seed in (1, 2)
    ]


def causal(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def pair_batch(inputs):
    ids_bt, answer_bt = inputs["input_ids"], inputs["completion_mask"].bool()
    last_b = inputs["attention_mask"].sum(1) - 1
    return PairBatch(list(range(len(ids_bt) // 2)), ids_bt, answer_bt, last_b)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])  # TRL has no conservative DPO any more
def test_dpo_and_ipo(folders, tmp_path, loss) -> None:
    config = trl.DPOConfig(
        output_dir=str(tmp_path), beta=0.3, loss_type=[loss], max_length=64, **COMMON
    )
    trainer = trl.DPOTrainer(
        model=causal(folders[0]),
        ref_model=causal(folders[1]),
        args=config,
        train_dataset=Dataset.from_list(rows()),
        processing_class=words(),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, inputs)
    batch = pair_batch(inputs)
    sides = []
    for folder in folders:
        sums_b, tokens_b = answer_logprobs(load_decoder(folder), batch)
        sides.append((sums_b / tokens_b if loss == "ipo" else sums_b).detach())
    agree("pairs", theirs, policy=sides[0], reference=sides[1], beta=0.3, loss=loss)


@pytest.mark.parametrize("centring", [0.0, 0.05])
@pytest.mark.parametrize("margin", [None, 0.7])
def test_reward_models(folders, tmp_path, centring, margin) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folders[0], num_labels=1, pad_token_id=0, dtype=torch.float32
    )
    config = trl.RewardConfig(
        output_dir=str(tmp_path), center_rewards_coefficient=centring or None, **COMMON
    )
    data = [
        {k: v for k, v in row.items() if k != "prompt"}
        | ({} if margin is None else {"margin": margin})
        for row in rows()
    ]
    trainer = trl.RewardTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=words()
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(inputs))
    with torch.no_grad():
        scores_b = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits[:, 0]
    agree("scores", theirs, scores=scores_b, margin=margin, centring=centring)


def grpo(folder, out, **options):
    """A trainer of TRL's whose rewards are known."""
    given = []

    def reward(completion_ids, **_):
        given.append([sum(ids) / (300.0 * len(ids)) for ids in completion_ids])
        return given[-1]

    config = trl.GRPOConfig(
        output_dir=str(out),
        **{**COMMON, "per_device_train_batch_size": 8, "learning_rate": 1e-6},
        num_generations=4,
        max_completion_length=12,
        temperature=1.0,
        **options,
    )
    trainer = trl.GRPOTrainer(
        model=causal(folder),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [row["prompt"] for row in rows(8)]}),
        processing_class=words(),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer, given


@pytest.mark.parametrize(("scale", "by_std"), [("group", True), ("none", False)])
def test_advantages_of_groups(folders, tmp_path, scale, by_std) -> None:
    trainer, given = grpo(folders[0], tmp_path, scale_rewards=scale)
    inputs = [{"prompt": row["prompt"]} for row in rows(2) for _ in range(4)]
    theirs = trainer._generate_and_score_completions(inputs)["advantages"]
    assert len(set(given[-1])) > 4
    agree("group", theirs, scores=torch.tensor(given[-1]), by_std=by_std)


def test_advantages_of_the_others(folders, tmp_path) -> None:
    given = []

    def reward(completion_ids, **_):
        given.append([sum(ids) / (300.0 * len(ids)) for ids in completion_ids])
        return given[-1]

    config = trl.RLOOConfig(
        output_dir=str(tmp_path),
        **{**COMMON, "per_device_train_batch_size": 8},
        num_generations=4,
        max_completion_length=12,
        beta=0.0,
    )
    trainer = trl.RLOOTrainer(
        model=causal(folders[0]),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [row["prompt"] for row in rows(8)]}),
        processing_class=words(),
    )
    inputs = [{"prompt": row["prompt"]} for row in rows(2) for _ in range(4)]
    theirs = trainer._generate_and_score_completions(inputs)["advantages"]
    agree("others", theirs, scores=torch.tensor(given[-1]))


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    ("loss", "normalise"), [("grpo", "answers"), ("bnpo", "tokens"), ("dr_grpo", "constant")]
)
def test_clipped_losses_with_kl(folders, tmp_path, loss, normalise, beta) -> None:
    """The surrogate with both clips, the k3 estimate, and what long answers weigh."""
    trainer, _ = grpo(
        folders[0],
        tmp_path,
        loss_type=loss,
        beta=beta,
        epsilon=0.1,
        epsilon_high=0.25,
        use_bias_correction_kl=False,
    )
    chance = torch.Generator().manual_seed(3)
    b, p, t = 8, 4, 12
    ids_bt = torch.randint(1, WORDS, (b, p + t), generator=chance)
    lengths_b = torch.randint(1, t + 1, (b,), generator=chance)
    mask_bt = (torch.arange(t) < lengths_b[:, None]).long()
    advantages_b = torch.randn(b, generator=chance)
    now_bt, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids_bt, torch.cat((torch.ones(b, p).long(), mask_bt), 1), t
    )
    now_bt = now_bt.detach()
    old_bt = now_bt + 0.3 * torch.randn(b, t, generator=chance)
    reference_bt = now_bt + 0.5 * torch.randn(b, t, generator=chance)
    inputs = {
        "prompt_ids": ids_bt[:, :p],
        "prompt_mask": torch.ones(b, p).long(),
        "completion_ids": ids_bt[:, p:],
        "completion_mask": mask_bt,
        "advantages": advantages_b,
        "old_per_token_logps": old_bt,
        "ref_per_token_logps": reference_bt,
        "num_items_in_batch": mask_bt.sum(),
    }
    theirs = trainer._compute_loss(trainer.model, inputs)
    valid_bt = mask_bt.bool()
    agree(
        "clipped",
        theirs,
        now=now_bt,
        old=old_bt,
        reference=reference_bt,
        advantages=advantages_b,
        valid=valid_bt,
        low=0.1,
        high=0.25,
        normalise=normalise,
        beta=beta,
    )


@pytest.mark.parametrize("shift", [True, False])
def test_whitening(shift) -> None:
    utils = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
    chance = torch.Generator().manual_seed(4)
    x_bt = torch.randn(6, 9, generator=chance) * 3 + 2
    valid_bt = torch.rand(6, 9, generator=chance) > 0.4
    theirs = utils.masked_whiten(x_bt, valid_bt, shift_mean=shift)
    agree("whitened", theirs[valid_bt], x=x_bt, valid=valid_bt, shift=shift)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_ppos_kl_rewards_and_value_loss(folders, tmp_path, estimator) -> None:
    """One batch of TRL's PPO: its KL, its GAE inside the value loss, from its own responses."""
    module = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompt, response, pad = 4, 10, WORDS
    tokenizer = words()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # not hidden among the words
    score_of = transformers.AutoModelForSequenceClassification.from_pretrained
    reward = score_of(folders[1], num_labels=1, dtype=torch.float32)
    value = score_of(folders[1], num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        value.score.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(5))
    config = PPOConfig(
        output_dir=str(tmp_path),
        **{**COMMON, "per_device_train_batch_size": 8, "max_steps": -1},
        num_ppo_epochs=1,
        num_mini_batches=1,
        total_episodes=8,
        response_length=response,
        temperature=1.0,
        kl_coef=0.2,
        kl_estimator=estimator,
        lam=0.8,
        gamma=0.97,
        cliprange_value=0.05,
        num_sample_generations=0,
        logging_steps=1,
    )
    sampled, figures = [], {}
    generate = module.batch_generation

    def noted(*args, **kwargs):
        sampled.append(generate(*args, **kwargs))
        return sampled[-1]

    class Figures(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            figures.update(logs or {})

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "batch_generation", noted)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows(8)]
    policy, reference = causal(folders[0]), causal(folders[1])
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[Figures()],
    )
    trainer.train()
    patch.undo()
    ids_bt = sampled[0][0]
    assert pad not in ids_bt.flatten().tolist()

    def logp(model):
        with torch.no_grad():
            logits = model(ids_bt).logits[:, prompt - 1 : -1]
        return logits.log_softmax(-1).gather(2, ids_bt[:, prompt:, None])[:, :, 0]

    with torch.no_grad():
        values_bt = value.score(value.model(ids_bt).last_hidden_state)[:, prompt - 1 : -1, 0]
        scores_b = reward.score(reward.model(ids_bt).last_hidden_state)[:, -1, 0]
    theirs = [figures[f] for f in ("objective/kl", "objective/rlhf_reward", "loss/value_avg")]
    agree(
        "ppo",
        torch.tensor(theirs),
        rel=1e-4,
        now=logp(policy),
        reference=logp(reference),
        scores=scores_b,
        values=values_bt,
        estimator=estimator,
        coefficient=0.2,
        gamma=0.97,
        lam=0.8,
        clip=0.05,
    )
