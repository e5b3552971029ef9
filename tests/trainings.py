"""Small corpora, tokenizers and runs for the tests of the trainer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from plinth.models.decoder import Decoder
from plinth.models.families import new_config
from plinth.models.rope import Rope, RopeScaling
from plinth.trainer.data.corpus import write_corpus
from plinth.trainer.data.documents import Document
from plinth.trainer.data.tokenize import tokenize_corpus
from plinth.trainer.loop.config import TrainConfig

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MODEL = {
    "family": "llama",
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "intermediate": 64,
    "context": 32,
}


def decoder(seed: int = 0, **shape: Any) -> Decoder:
    """Of MODEL's shape, where `shape` says nothing else, with new weights."""
    made = Decoder(new_config(**{**MODEL, "vocab_size": 300, **shape}))
    made.init_weights(seed)
    return made


def decoder_by_length(original: int, seed: int = 0, **shape: Any) -> Decoder:
    """Of sequences that turn otherwise when they have more than `original` tokens, with weights so
    large that it shows."""
    scaling = RopeScaling(
        "longrope",
        original_context=original,
        short_factors=(1.0,) * 4,
        long_factors=(1.0, 3.0, 5.0, 9.0),
    )
    made = decoder(seed, ropes=(Rope(scaling=scaling),), **shape)
    for layer in made.layers:
        layer.get_parameter("self_attn.q_proj.weight").data *= 60
        layer.get_parameter("self_attn.o_proj.weight").data *= 60
    return made


def texts(count: int, seed: int = 0) -> list[Document]:
    """Documents with something to learn: words in a fixed order with a few variations."""
    chance = random.Random(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "again", "today"]
    return [
        Document(text=" ".join(chance.choice(words) for _ in range(chance.randint(20, 60))))
        for _ in range(count)
    ]


def chats(count: int) -> list[Document]:
    return [
        Document(messages=(("user", f"What is {i}?"), ("assistant", f"It is {i}, of course.")))
        for i in range(count)
    ]


def pairs(count: int, seed: int = 0) -> list[Document]:
    """Words in their order, preferred to the same words backwards."""
    chance = random.Random(seed)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "again", "today"]
    made = []
    for number in range(count):
        start = chance.randrange(4)
        said = words[start : start + chance.randint(3, 6)]
        question = ("user", f"Say {number}.")
        answer = ("assistant", " ".join(said))
        made.append(
            Document(
                messages=(question, answer), rejected=" ".join(said[::-1]), source="rule:backwards"
            )
        )
    return made


def tokenizer(folder: Path, vocab_size: int = 300) -> Path:
    """A small byte-level BPE tokenizer in a new folder."""
    folder.mkdir(parents=True)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([d.text for d in texts(50)], trainer)
    made.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chatml(folder: Path) -> dict[str, Callable[..., Any]]:
    """`render` and `stop_ids` of the tokenizer in `folder`, by the default template (ChatML)."""
    from chat_prompts import TokenizerInProcess  # Jinja, which not all of training needs
    from plinth.tokenizer.vocabulary import CHATML

    renderer = TokenizerInProcess(folder, CHATML).renderer()
    return {"render": renderer.chats(""), "stop_ids": lambda _: renderer.stop_ids("")}


def dataset(folder: Path, documents: list[Document], held_out: float = 0.1, **options) -> Path:
    """corpus → tokenizer → dataset in `folder`; returns the dataset."""
    write_corpus(iter(documents), folder / "corpus", source="test", validation_fraction=held_out)
    tokens = tokenizer(folder / "tokenizer")
    tokenize_corpus(
        folder / "corpus",
        tokens,
        folder / "dataset",
        tokenizer_ref="tokens@1",
        tokenizer_digest="sha256:0",
        **(chatml(tokens) if documents[0].form != "text" else {}),
        **options,
    )
    return folder / "dataset"


def config(dataset_folder: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        objective="clm",
        dataset=str(dataset_folder),
        init_from="",
        model=MODEL,
        sequence_length=32,
        batch_size=8,
        micro_batch_size=4,
        steps=12,
        max_seconds=0,
        learning_rate=1e-2,
        precision="fp32",
        threads=1,
        checkpoint_every=3,
    )
    return replace(base, **changes)


def job(folder: Path, made: TrainConfig) -> Path:
    folder.mkdir(parents=True)
    made.write(folder)
    return folder
