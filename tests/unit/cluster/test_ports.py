"""Ports that are chosen before anybody listens on them."""

from __future__ import annotations

import socket

import pytest

from plinth.cluster import ports
from plinth.shared.settings import load_settings


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> range:
    """So few that any two of a hundred would be equal almost surely."""
    few = ports._candidates()[-ports._TRIES :]
    monkeypatch.setattr(ports, "_candidates", lambda: few)
    ports._given.clear()
    return few


def test_none_is_given_twice_while_nobody_listens_yet(_few: range) -> None:
    given = [ports.free_port() for _ in range(ports._TRIES // 2)]
    assert len(set(given)) == len(given)
    assert set(given) <= set(_few)
    # Nobody listened: they come again, or a process that starts much would run out.
    assert set(given) & {ports.free_port() for _ in range(ports._TRIES // 2)}


def test_the_doors_of_a_gateway_differ() -> None:
    settings = load_settings(gateway={"port": 0, "grpc_port": 0})
    for _ in range(500):
        rest, grpc = ports.gateway_ports(settings)
        assert rest != grpc


def test_one_that_is_taken_is_not_given(_few: range) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.free_port()))
        listener.listen()
        held = listener.getsockname()[1]
        assert ports.taken("127.0.0.1", held)
        assert held not in {ports.free_port() for _ in range(3 * ports._TRIES)}
