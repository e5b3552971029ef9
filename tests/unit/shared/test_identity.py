"""Principals, call contexts, keys and the cluster's token."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from plinth.shared.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from plinth.shared.identity import (
    SCOPES,
    SYSTEM,
    Principal,
    call_scope,
    cluster_token,
    current_principal,
    current_request_id,
    hash_api_key,
    new_api_key,
    remaining_s,
)
from plinth.shared.settings import load_settings


def test_a_scope_is_needed_and_admin_is_all() -> None:
    principal = Principal("acme", "k1", frozenset({"inference"}))
    principal.require("inference")
    with pytest.raises(PermissionDenied, match=r"'jobs'.*inference"):
        principal.require("jobs")
    for scope in SCOPES:
        SYSTEM.require(scope)


def test_outside_a_call_there_is_nobody() -> None:
    assert current_request_id() == ""
    assert remaining_s() is None
    with pytest.raises(Unauthenticated):
        current_principal()


async def test_a_scope_holds_for_its_tasks_and_ends_with_it() -> None:
    seen = []
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        seen.append((current_request_id(), remaining_s()))

    principal = Principal("acme", "k1", frozenset())
    with call_scope(request_id="r1", principal=principal, timeout_s=60):
        assert current_principal() is principal
        left = remaining_s()
        assert left is not None
        assert 59 < left <= 60
        task = asyncio.create_task(later())
        with call_scope(request_id="r2"):
            assert current_request_id() == "r2"
        assert current_request_id() == "r1"
    assert current_request_id() == ""
    go.set()
    await task
    # Work that outlives its call keeps the id for the log, and is free of the deadline.
    assert seen == [("r1", None)]


def test_keys_are_long_random_and_kept_as_hashes() -> None:
    plain, digest = new_api_key()
    assert plain.startswith("plinth-")
    assert len(plain) > 40
    assert digest == hashlib.sha256(plain.encode()).hexdigest() == hash_api_key(plain)
    assert new_api_key()[0] != plain
    assert len(hash_api_key("\ud800")) == 64  # what a client sends may be anything


def test_the_token_is_made_once_even_by_many(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: cluster_token(settings), range(32)))
    assert len(tokens) == 1
    path = tmp_path / "secrets" / "cluster-token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["cluster-token"]  # no drafts left
    assert cluster_token(settings) == path.read_text()


def test_a_token_that_others_can_read_is_refused(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path)
    cluster_token(settings)
    path = tmp_path / "secrets" / "cluster-token"
    path.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        cluster_token(settings)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(FailedPrecondition, match="holds no token"):
        cluster_token(settings)


def test_a_token_from_settings_touches_no_file(tmp_path) -> None:
    settings = load_settings(data_dir=tmp_path / "d", cluster_token="s" * 20)
    assert cluster_token(settings) == "s" * 20
    assert not (tmp_path / "d").exists()
