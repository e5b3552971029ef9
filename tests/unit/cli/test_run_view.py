"""What a run's end says of its comparisons."""

from __future__ import annotations

from typing import Any

from rich.console import Console

import shown_runs
from plinth.cli.run_summary import summary
from plinth.cli.run_view import about
from plinth.shared.intake import Intake
from plinth.v1 import artifacts_pb2
from plinth.v1 import runs_pb2 as pb


def step(kind: str, figures: dict[str, Any], output: str = "chat@1") -> pb.Step:
    return shown_runs.step(kind, figures, output)


def shown(*steps: pb.Step) -> str:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(summary(shown_runs.run(*steps), lambda ref: artifacts_pb2.Artifact(name=ref)))
    return capture.get()


def contest(winner: str, why: str) -> dict[str, Any]:
    figures = {"reward": 0.1, "win_rate_low": 0.4, "win_rate_high": 0.6}
    return {
        "winner": winner,
        "why": why,
        "prompts": 100,
        "models": {
            "baseline": {"model": "chat@1", "win_rate": 0.5, **figures},
            "candidate": {"model": "dpo@1", "win_rate": 0.52, **figures},
        },
    }


def test_a_baseline_that_stays_is_not_said_to_beat_itself() -> None:
    why = "chat@1 stays, no rival is better beyond chance: dpo@1 wins 52.0% of 100 prompts"
    done = step("compare", contest("baseline", why))
    assert about(done) == f"chat@1  {why}"
    told = shown(done)
    assert why in told
    (row,) = [line for line in told.splitlines() if line.startswith("chat@1") and "goes on" in line]
    assert "50.0%" not in row
    assert "52.0%" in told


def test_a_model_that_lost_against_counting_is_above_it() -> None:
    exam = {"bits_per_byte": 2.52, "ngram_bits_per_byte": 2.0}
    told = shown(step("evaluate", {**exam, "below_ngram": -0.26}))
    assert "2.000 (26.0% above it)" in told
    assert "2.000 (26.0% below it)" in shown(step("evaluate", {**exam, "below_ngram": 0.26}))


def test_a_contest_shows_what_was_asked_and_what_each_model_said() -> None:
    figures = contest("candidate", "dpo@1 wins")
    figures["shown"] = [
        {
            "prompt": "user\nWhat is `os.sep` for?\nassistant",
            "reference": "The separator of paths.",
            "answers": {"baseline": "Return the list\x1b[2J", "candidate": " "},
        }
    ]
    for share, model in zip((0.5, 0.25), figures["models"].values(), strict=True):
        model |= {"distinct_trigrams": share, "reference_own": share}
        model |= {"reference_others": 0.01, "reference_p_value": 0.0005}
    told = shown(step("compare", figures, "dpo@1"))
    assert "> What is `os.sep` for?" in told
    assert "assistant" not in told
    assert "The separator of paths." in told
    assert "\x1b" not in told
    said = [line.split(maxsplit=1) for line in told.splitlines() if line.startswith("dpo@1 ")]
    assert ["dpo@1", "(nothing)"] in [[part.strip() for part in line] for line in said]
    (row,) = [line for line in told.splitlines() if "goes on" in line]
    for cell in ("dpo@1", "52.0%", "0.25", "25.0%", "1.0%", "0.0005"):
        assert cell in row


DPO = {
    "steps": 25,
    "loss": 0.0001,
    "tokens_per_second": 500.0,
    "validation_pairs": 65.0,
    "validation_accuracy": 0.98,
    "validation_reward_chosen": -0.12,
    "validation_reward_rejected": -6.86,
    "validation_reward_margin": 6.74,
    "validation_chosen_logprob_before": -0.35,
    "validation_chosen_logprob": -0.43,
    "validation_rejected_logprob_before": -0.16,
    "validation_rejected_logprob": -1.1,
    "validation_chosen_fallen": 0.2,
}


def test_dpo_tells_what_its_users_ask() -> None:
    done = step(
        "train", {**DPO, "intake": [Intake("pairs", 235, {}, {"more held out": 65}).to_json()]}
    )
    told = about(done)
    for said in (
        "98% of 65 held-out pairs",
        "margin 6.74",
        "chosen -0.35 → -0.43",
        "rejected -0.16 → -1.10",
        "235 pairs; 65 more held out",
    ):
        assert said in told
    assert "loss" not in told
    told = shown(done)
    for cell in ("rewards/chosen", "-0.12", "rewards/rejected", "-6.86", "+6.74", "98.0%", "20%"):
        assert cell in told
    assert "warning" not in told


def test_a_run_that_made_preferred_answers_much_less_likely_warns_and_advises() -> None:
    """Accuracy and margin say nothing of it: they rise."""
    fell = {"validation_chosen_fallen": 1.0, "validation_chosen_logprob": -0.95}
    told = shown(step("train", {**DPO, **fell}))
    (warned,) = [one for one in told.split("\n\n") if "warning" in one]
    for said in ("100% of the held-out preferred", "-0.35 → -0.95", "likelihood_weight", "beta"):
        assert said in warned
    assert "learning_rate" in warned


def test_a_policy_tells_its_reward_and_not_its_loss() -> None:
    figures = {"loss": -0.0001, "kl": 4.2, "tokens_per_second": 9.0}
    rewards = {"validation_reward_before": -0.5, "validation_reward": 0.25}
    assert about(step("train", figures | rewards)) == (
        "chat@1  held-out reward -0.50 → 0.25, KL 4.20 nats per answer"
    )
    assert "loss" in about(step("train", figures))  # nothing was held out


def test_a_judge_tells_how_often_it_is_right() -> None:
    figures = {"loss": 0.2, "validation_pairs": 40.0, "validation_accuracy": 0.9}
    told = about(step("train", figures | {"validation_calibration_error": 0.1}))
    assert told == "chat@1  90% of 40 held-out pairs in the right order"


def test_a_warning_of_what_was_left_out_says_what_would_help() -> None:
    intake = Intake("pairs", 141, {"too long for sequence_length 384": 93}, {}, "Raise it")
    assert "(40% left out). Raise it" in shown(step("train", {"intake": [intake.to_json()]}))
