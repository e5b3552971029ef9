from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import trainings

DOCUMENTS = {
    "text": lambda: trainings.texts(300),
    "messages": lambda: trainings.chats(200),
    "pairs": lambda: trainings.pairs(160),
}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Form → dataset, made when it is first asked for; to be read, never written to."""
    made: dict[str, Path] = {}

    def of(form: str) -> Path:
        if form not in made:
            made[form] = trainings.dataset(tmp_path_factory.mktemp(form), DOCUMENTS[form]())
        return made[form]

    return of


@pytest.fixture(autouse=True)
def _threads_left_as_found() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
