"""Opened tokenizers by artifact: resolved at each call, loaded once per content, few kept.

A reference may move (`chat:prod`), a content never does, so the cache is keyed on the digest.
Everything blocks and is called from worker threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from plinth.shared.errors import InvalidArgument
from plinth.shared.kinds import a_kind
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.tokenizer.codec import Codec

KINDS = ("model", "reward", "tokenizer")
CAPACITY = 8


class Catalog:
    """At most `capacity` open codecs; the one unused for longest goes first."""

    def __init__(self, store: ArtifactStore, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._capacity = capacity
        self._codecs: OrderedDict[str, Codec] = OrderedDict()
        self._lock = threading.Lock()

    def codec(self, model: str) -> Codec:
        """The codec of a model or tokenizer artifact. NotFound, InvalidArgument, DataLoss."""
        if not model:
            raise InvalidArgument("model is empty; name a model or tokenizer", field="model")
        record = self._store.get(model)
        if record.kind not in KINDS:
            raise InvalidArgument(
                f"{record.ref} is {a_kind(record.kind)} and has no tokenizer; "
                f"name a model, a reward model or a tokenizer",
                field="model",
            )
        return self._opened(record.digest, lambda: self._load(record))

    def _load(self, record: ArtifactRecord) -> Codec:
        return Codec(self._store.fetch(record))

    def _opened(self, digest: str, load: Callable[[], Codec]) -> Codec:
        with self._lock:
            if digest in self._codecs:
                self._codecs.move_to_end(digest)
                return self._codecs[digest]
        # Loading takes a while and must not hold up the others; two at once give equal codecs.
        codec = load()
        with self._lock:
            self._codecs[digest] = codec
            self._codecs.move_to_end(digest)
            while len(self._codecs) > self._capacity:
                self._codecs.popitem(last=False)
        return codec
