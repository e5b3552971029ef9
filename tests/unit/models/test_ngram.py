"""The n-gram yardstick against a naive dictionary implementation of the same equations."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from plinth.models import ngram
from plinth.models.ngram import ByteNgram

START = 256


class NaiveKneserNey:
    """Chen & Goodman's interpolated modified Kneser-Ney, word for word, over dictionaries."""

    def __init__(self, documents: list[bytes], order: int) -> None:
        self.order = order
        counts: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            symbols = [START] * (order - 1) + list(document)
            for end in range(order, len(symbols) + 1):
                counts[tuple(symbols[end - order : end])] += 1
        self.counts = {order: counts}
        for length in range(order - 1, 0, -1):
            self.counts[length] = Counter(gram[1:] for gram in self.counts[length + 1])
        self.discounts = {length: self._discounts(c) for length, c in self.counts.items()}
        self.followers: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for length, table in self.counts.items():
            followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for gram, count in table.items():
                followers[gram[:-1]].append(count)
            self.followers[length] = followers

    @staticmethod
    def _discounts(table: Counter[tuple[int, ...]]) -> list[float]:
        n = [0] + [sum(1 for c in table.values() if c == times) for times in (1, 2, 3, 4)]
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            d = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
            if all(0 < x <= k for k, x in zip((1, 2, 3), d, strict=True)):
                return [0.0, *d]
        return [0.0, 0.5, 1.0, 1.5]

    def p(self, byte: int, context: tuple[int, ...]) -> float:
        if len(context) == 0 and 1 not in self.counts:
            return 1 / 256
        length = len(context) + 1
        shorter = self.p(byte, context[1:]) if context else 1 / 256
        seen = self.followers[length].get(context)
        if not seen:
            return shorter
        d = self.discounts[length]
        count = self.counts[length].get((*context, byte), 0)
        gamma = sum(d[min(c, 3)] for c in seen) / sum(seen)
        return (count - d[min(count, 3)]) / sum(seen) + gamma * shorter

    def document(self, document: bytes) -> list[float]:
        symbols = [START] * (self.order - 1) + list(document)
        return [
            self.p(symbols[end], tuple(symbols[end - self.order + 1 : end]))
            for end in range(self.order - 1, len(symbols))
        ]


def text(seed: int, size: int, alphabet: bytes) -> bytes:
    rng = random.Random(seed)
    words = [bytes(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(40)]
    out = b""
    while len(out) < size:
        out += rng.choice(words) + b" "
    return out[:size]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_naive_model(order: int) -> None:
    train = [text(seed, 1500, b"abcdefgh") for seed in range(4)] + [b"", b"x", b"\x00\xff\x00"]
    held_out = [text(9, 700, b"abcdefghz"), b"\xfe", b"a", b"never seen \x00\x01"]
    model, naive = ByteNgram(order).fit(train), NaiveKneserNey(train, order)
    for document in held_out:
        wanted = np.log2(naive.document(document))
        np.testing.assert_allclose(model.log2_probabilities(document), wanted, rtol=1e-12)
    bits = -sum(math.log2(p) for document in held_out for p in naive.document(document))
    size = sum(len(document) for document in held_out)
    assert model.bits_per_byte(held_out) == pytest.approx(bits / size, rel=1e-12)


def test_sums_to_one_in_seen_and_unseen_contexts() -> None:
    model = ByteNgram().fit([text(1, 5000, bytes(range(97, 110))), bytes(range(256))])
    for context in (b"", b"a", b"ab", b"abcd", b"\xff\xfe\xfd\xfc", b"long context ending in ab"):
        p_256 = model.distribution(context)
        assert p_256.min() > 0
        assert p_256.sum() == pytest.approx(1.0, abs=1e-12)


def test_chunks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [text(seed, 400, b"abcd") for seed in range(20)]
    whole = ByteNgram().fit(documents).bits_per_byte(documents)
    monkeypatch.setattr(ngram, "_CHUNK_BYTES", 700)
    assert ByteNgram().fit(iter(documents)).bits_per_byte(iter(documents)) == whole


def test_contexts_do_not_cross_documents() -> None:
    model = ByteNgram(3).fit([b"ab", b"ab"])
    apart = model.distribution(b"")
    assert apart[ord("a")] > 0.5 > model.distribution(b"ab")[ord("a")]


def test_nothing_to_learn_from_or_to_judge() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        ByteNgram().fit([b""])
    with pytest.raises(ValueError, match="fit the model"):
        ByteNgram().bits_per_byte([b"a"])
    with pytest.raises(ValueError, match="order"):
        ByteNgram(9)
    assert math.isnan(ByteNgram().fit([b"a"]).bits_per_byte([]))
