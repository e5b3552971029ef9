"""What is wrong with one conversation of a batch, told with the document's file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plinth.shared.errors import PlinthError

# Of an error's metadata: the number, from 0, of the conversation that it is about among those that
# were given at once.
CONVERSATION = "conversation"


@contextmanager
def located(where: Callable[[int], str]) -> Iterator[None]:
    """`where` gives the file and line of a conversation by its number."""
    try:
        yield
    except PlinthError as error:
        number = error.metadata.get(CONVERSATION)
        if number is None:
            raise
        raise type(error)(
            f"{where(int(number))}: {error.message}", reason=error.reason, field=error.field
        ) from error
