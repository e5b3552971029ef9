"""Training a vocabulary as a job of the stage: progress out, an artifact at the end.

The same inputs under the same name give the artifact that is there, without training. A caller
that hangs up ends the reading of its corpus; nothing is published then.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.shared.artifact_messages import artifact_message
from plinth.shared.errors import Cancelled, InvalidArgument, NotFound
from plinth.shared.kinds import a_kind
from plinth.shared.manifest import check_name
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.tokenizer import vocabulary
from plinth.tokenizer.vocabulary import VocabularySpec

PROGRESS_SECONDS = 0.5
TOLD_ALL = "end"  # the resume token of the last response


@dataclass
class _Reading:
    """What the training thread has read, and whether it should go on."""

    total: int
    read: int = 0
    abandoned: bool = field(default=False)

    def progress(self, read: int) -> None:
        if self.abandoned:
            raise Cancelled("the caller hung up")
        self.read = read


async def train_and_publish(
    store: ArtifactStore, roots: SourceRoots, request: pb.TrainRequest
) -> AsyncIterator[pb.TrainResponse]:
    """Progress twice a second, then the artifact. Raises as `VocabularySpec` and `train` do."""
    check_name(request.name, "name")  # before a large folder is read for nothing
    spec = VocabularySpec(
        request.vocab_size,
        tuple(request.special_tokens) or vocabulary.SPECIAL_TOKENS,
        request.chat_template or vocabulary.CHATML,
    )
    files, digest, parents = await asyncio.to_thread(_corpus, store, roots, request.corpus)
    total = sum(path.stat().st_size for path in files)
    inputs = spec.digest(digest)
    record = await asyncio.to_thread(store.find_by_input, request.name, inputs)
    if record is None:
        reading = _Reading(total)
        work = asyncio.create_task(
            asyncio.to_thread(
                _train, store, request.name, files, spec, reading, (inputs, digest), parents
            )
        )
        try:
            while not (await asyncio.wait({work}, timeout=PROGRESS_SECONDS))[0]:
                yield pb.TrainResponse(bytes_read=reading.read, bytes_total=total)
        finally:
            if not work.done():
                reading.abandoned = True
                work.add_done_callback(_outcome_of_no_use)
        record = await work
    yield pb.TrainResponse(bytes_read=total, bytes_total=total, artifact=artifact_message(record))


def train_position(request: pb.TrainRequest) -> int | None:
    """Bytes of which the caller was told already; -1 at the start, None once it has it all."""
    token = request.resume_token
    if token == TOLD_ALL:
        return None
    if token and not (token.isascii() and token.isdigit() and len(token) < 20):
        raise InvalidArgument(
            f"resume_token {token[:40]!r} is none of Train's: give the last response's as it was, "
            "or none to begin",
            field="resume_token",
        )
    return int(token) if token else -1


def position_behind(progress: pb.TrainResponse) -> str:
    """The resume token of a response. Bytes don't tell the artifact's: it may come after progress
    that counts as many, and a folder that was changed may have fewer when the training is begun
    anew."""
    return TOLD_ALL if progress.HasField("artifact") else str(progress.bytes_read)


def _outcome_of_no_use(work: asyncio.Task[ArtifactRecord]) -> None:
    """Nobody waits any more; asyncio would complain of an error that nobody took."""
    if not work.cancelled():
        work.exception()


def _corpus(
    store: ArtifactStore, roots: SourceRoots, corpus: str
) -> tuple[list[Path], str, tuple[str, ...]]:
    """(files, digest, parents) of a corpus: a folder of the roots when it is written as a path."""
    if not corpus:
        raise InvalidArgument("corpus is empty; name an artifact or a folder", field="corpus")
    if "/" in corpus:
        folder = roots.check(corpus, field="corpus")
        if not folder.is_dir():
            raise NotFound(f"{corpus}: no such folder", field="corpus")
        files = vocabulary.corpus_files(folder)
        for file in files:
            roots.check(file, field="corpus")
        return files, vocabulary.files_digest(files), ()
    record = store.get(corpus)
    if record.kind != "corpus":
        raise InvalidArgument(
            f"{record.ref} is {a_kind(record.kind)}, not a corpus", field="corpus"
        )
    return vocabulary.corpus_files(store.fetch(record)), record.digest, (record.ref,)


def _train(
    store: ArtifactStore,
    name: str,
    files: list[Path],
    spec: VocabularySpec,
    reading: _Reading,
    digests: tuple[str, str],
    parents: tuple[str, ...],
) -> ArtifactRecord:
    inputs, corpus_digest = digests
    tokenizer = vocabulary.train(files, spec, reading.progress)
    reading.progress(reading.total)
    with tempfile.TemporaryDirectory(prefix="plinth-tokenizer-") as folder:
        vocabulary.save(tokenizer, spec, Path(folder))
        return store.publish(
            name,
            "tokenizer",
            Path(folder),
            parents=parents,
            config={
                "algorithm": "byte-level BPE",
                "vocab_size": spec.vocab_size,
                "special_tokens": list(spec.special_tokens),
            },
            data_digests={"corpus": corpus_digest},
            input_digest=inputs,
        )
