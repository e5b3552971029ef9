"""A run's held-out figure is the exam's: the same windows, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trainings
from plinth.algos.windows import windows
from plinth.kernels.training import SdpaBackend
from plinth.models.rope import Rope, RopeScaling
from plinth.trainer.data.shards import Split
from plinth.trainer.loop import Group
from plinth.trainer.objectives.bits_per_byte import evaluate


def nll_of_window(decoder, ids, first):
    """Of ids[first:], by the decoder on this window alone."""
    inputs, n = torch.from_numpy(ids[:-1]), len(ids) - 1
    backend = SdpaBackend(1, n)
    positions = torch.arange(n) + decoder.config.rope_offset(n)
    logits = decoder.logits(decoder(inputs, positions, backend), backend).float()
    logp = logits.log_softmax(-1).gather(1, torch.from_numpy(ids[1:])[:, None])[:, 0]
    return -logp[first - 1 :]


@pytest.mark.parametrize(
    ("documents", "length", "original"),
    [(trainings.texts(60), 16, 0), (trainings.chats(60), 7, 0), (trainings.texts(60), 120, 42)],
)
def test_it_reads_documents_as_the_exam_does(documents, length, original, tmp_path):
    """original: the length from which a window turns otherwise, where one does: by its own."""
    dataset = trainings.dataset(tmp_path, documents)
    split = Split(dataset, "validation")
    scaling = RopeScaling("dynamic", factor=8.0, original_context=original) if original else None
    ropes = (Rope(100.0, scaling=scaling),)
    decoder = trainings.decoder(3, vocab_size=split.info.vocab_size, context=128, ropes=ropes)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(8.0)  # new weights hardly attend
    nats, lengths = 0.0, []
    with torch.no_grad():
        for number in range(split.documents):
            ids, mask = split.document(number)
            if split.info.form == "text":
                ids = np.concatenate(([split.info.end_of_text_id], ids[:-1]))
                mask = np.ones(len(ids), np.uint8)
            for window in windows(len(ids), length + 1):
                if window.end > window.first:
                    here = ids[window.start : window.end]
                    lengths.append(len(here) - 1)
                    nll = nll_of_window(decoder, here, window.first - window.start)
                    learnt = torch.from_numpy(mask[window.first : window.end].copy())
                    nats += float((nll * learnt).sum())
        found = evaluate(decoder, split, length, 4, Group())
    assert not original or min(lengths) <= original < max(lengths)
    assert found.nats == pytest.approx(nats, rel=1e-5)
