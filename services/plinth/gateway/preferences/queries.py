"""Query strings of /v1/preferences, whose values are text, and the messages that they become."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from plinth.gateway.preferences.bodies import (
    Name,
    Selecting,
    Source,
    collection_name,
    source_of,
)
from plinth.shared.api.enums import number
from plinth.v1 import preferences_pb2 as pb


class _Query(BaseModel):
    """Values of a query string are text, so they are converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CollectionQuery(_Query):
    """?collection=…"""

    collection: Name = ""


class ListQuery(CollectionQuery):
    """GET /v1/preferences/tasks."""

    limit: int = Field(default=50, ge=1, le=200)


class ExportQuery(CollectionQuery, Selecting):
    """GET /v1/preferences/export."""

    shape: str = Field(default="trl", max_length=40)

    def to_proto(self) -> pb.ExportPairsRequest:
        return pb.ExportPairsRequest(
            parent=collection_name(self.collection),
            selection=self.selection(),
            shape=pb.PairShape.ValueType(number(pb.PairShape, self.shape, "shape")),
        )


class ImportQuery(CollectionQuery):
    """POST /v1/preferences/import, whose body is JSON lines."""

    source: Source | None = None
    annotator: Name = ""
    first_line: int = Field(default=1, ge=1, le=2**53)
    check_only: bool = False

    def to_proto(self, lines: bytes) -> pb.ImportPairsRequest:
        return pb.ImportPairsRequest(
            parent=collection_name(self.collection),
            jsonl=lines,
            source=source_of(self.source or ""),
            annotator=self.annotator,
            first_line=self.first_line,
            validate_only=self.check_only,
        )
