# SPDX-License-Identifier: BSD-3-Clause
"""The corpus again, a burst of new inputs for each target, and proof that findings are found."""

from __future__ import annotations

import random
import struct
from contextlib import closing
from pathlib import Path

import pytest

from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from tests.fuzz import bad_models, bad_subject, blind, codec, corpus, random_client, run, watch
from tests.fuzz.__main__ import main
from tests.fuzz.client import LiveClient
from tests.fuzz.messages import pieces, request
from tests.fuzz.server import LiveServer
from tests.fuzz.values import message
from tests.fuzz.watch import Finding, Tally

BURST = 300
"""New inputs for each target of the codec."""

CONNECTIONS = 12
"""Connections for each live target."""

LIVE = ("server-edu", "server-testdev", "client")


@pytest.mark.parametrize("target", codec.TARGETS)
def test_codec_stands_the_corpus(target: str) -> None:
    known = corpus.inputs(target)
    assert known
    assert list(blind.failing(target, iter(known))) == []


@pytest.mark.parametrize("target", codec.TARGETS)
def test_codec_stands_a_burst_of_new_inputs(target: str) -> None:
    known = corpus.inputs(target)
    inputs = (blind.made(target, known, seed) for seed in range(BURST))
    assert list(blind.failing(target, inputs)) == []


@pytest.mark.parametrize("target", LIVE)
def test_live_end_stands_a_burst_of_connections(target: str, socket_folder: Path) -> None:
    tally = Tally()
    with closing(run.live_end(target, socket_folder, tally)) as end:
        for seed in range(CONNECTIONS):
            end.once(seed)
    assert tally.sent > CONNECTIONS
    assert tally.received > CONNECTIONS


# What is a finding is found


def found_in(end: LiveServer | LiveClient) -> str:
    """The kind of the first thing that is found; nothing, after many connections."""
    with closing(end):
        for seed in range(200):
            try:
                end.once(seed)
            except Finding as finding:
                return finding.kind
    return ""


BAD = {"Dies": "crash", "Raises": "exception", "Leaks": "leak", "Hangs": "hang"}


@pytest.mark.parametrize(("model", "kind"), BAD.items(), ids=BAD)
def test_bad_model_is_found(
    model: str, kind: str, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.5)
    monkeypatch.setattr(random_client, "PATIENCE", 3.0)
    assert found_in(LiveServer(f"{bad_models.__name__}:{model}", socket_folder, Tally())) == kind


def test_fault_in_the_client_is_found(socket_folder: Path) -> None:
    end = LiveClient(socket_folder, Tally(), subject=bad_subject.__name__)
    assert found_in(end) == "exception"


def test_fault_in_the_codec_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(payload: memoryview) -> m.RegionRead:
        return m.RegionRead(*struct.unpack("=QII", payload))  # without a look at its size

    monkeypatch.setattr(m.RegionRead, "decode", decode)
    for target in ("stream", "payload"):
        inputs = (blind.made(target, [], seed) for seed in range(2000))
        assert next(blind.failing(target, inputs), None), target


# What is sent


@pytest.mark.parametrize("role", Role)
def test_every_command_of_a_role_is_sent_and_many_are_damaged(role: Role) -> None:
    rng = random.Random(1)
    sent = [request(rng, role, 1, wildness=0.3) for _ in range(2000)]
    own = {command for command, spec in COMMANDS.items() if spec.sender is role}
    assert own <= {wire.command for wire in sent if wire.message is not None}
    assert any(not wire.in_step for wire in sent)
    assert any(wire.message is None and wire.in_step for wire in sent)


@pytest.mark.parametrize("kind", codec.PAYLOADS, ids=lambda kind: kind.__name__)
def test_every_payload_class_can_be_made(kind: type[m.Message]) -> None:
    rng = random.Random(1)
    made = [message(rng, kind) for _ in range(100)]
    assert all(type(one) is kind for one in made)


def test_one_seed_makes_the_same_inputs() -> None:
    for target in codec.TARGETS:
        assert [blind.made(target, [], seed) for seed in range(50)] == [
            blind.made(target, [], seed) for seed in range(50)
        ]


def test_a_message_in_pieces_is_the_same_message() -> None:
    rng = random.Random(1)
    data = bytes(range(200))
    cut = [list(pieces(rng, data)) for _ in range(200)]
    assert all(b"".join(parts) == data for parts in cut)
    assert {len(parts) for parts in cut} == {1, 2, 49}


# Files of inputs


def test_what_fails_is_written_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = corpus.file_of("chain", tmp_path)
    corpus.add(path, [("2000", "an empty struct"), ("", "")])
    assert corpus.lines(path) == ["2000"]
    assert main(["replay", str(path)]) == 0
    assert "chain 2000: nothing" in capsys.readouterr().out
