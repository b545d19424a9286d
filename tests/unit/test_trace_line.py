# SPDX-License-Identifier: BSD-3-Clause
"""A trace as it is read: lines that anybody may have written, for people to read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pyvfio.cli.trace_line import Line
from pyvfio.cli.trace_summary import Summary
from tests.unit.wire_examples import MODERATE

WHOSE = {
    "time": "2026-01-01T00:00:00.000000+00:00",
    "mono": 10.0,
    "pid": 4711,
    "role": "client",
    "channel": "vfio-user:/x.sock",
    "connection": 2,
    "socket": "main",
}
ASKED = {"direction": "sent", "id": 3, "command": "REGION_READ", "type": "command", "size": 32}
ANSWERED = {**ASKED, "direction": "received", "type": "reply", "size": 36}


def line(**members: Any) -> Line:
    """A line with these members."""
    return Line.parse(json.dumps({**WHOSE, **members}).encode())


def row(**members: Any) -> str:
    """A line as it is printed, without its time."""
    return line(**members).row(10.0)[14:].strip()


# For people


def test_a_request_shows_process_end_direction_id_command_and_fields() -> None:
    found = row(**ASKED, fields={"offset": 16, "region": 7, "count": 4})
    assert found.split() == [
        *("4711", "client", "2", "->", "3", "REGION_READ"),
        *("offset=0x10", "region=CONFIG", "count=4"),
    ]


def test_a_reply_shows_its_data_and_its_time() -> None:
    data = {"bytes": 4, "hex": "01020304"}
    found = row(**ANSWERED, fields={"data": data}, us=12.34)
    assert found.split()[3:] == ["<-", "3", "REGION_READ", "reply", "data=01020304", "12.3", "us"]


def test_data_that_were_shortened_show_their_length() -> None:
    found = row(**ASKED, fields={"data": {"bytes": 4096, "hex": "00" * 32}})
    assert found.endswith(f"data={'00' * 32}... (4096 bytes)")


def test_the_time_is_counted_from_the_first_line() -> None:
    assert line(**ASKED).row(9.5).split()[0] == "0.500000"


def test_the_twin_socket_is_named() -> None:
    assert " twin " in row(**ASKED, socket="twin")
    assert " twin " not in row(**ASKED)


def test_an_error_reply_shows_name_and_request() -> None:
    asked = {"offset": 0, "region": 0, "count": 4}
    found = row(**ANSWERED, error="EINVAL", flags="ERROR", request=asked)
    assert found.endswith("EINVAL  to offset=0x0 region=BAR0 count=4")


def test_what_was_undecoded_shows_the_reason() -> None:
    found = row(**ASKED, undecoded={"reason": "too short", "bytes": 1, "hex": "aa"})
    assert found.endswith("(reason=too short bytes=1 hex=aa)")


def test_descriptors_of_a_kind_are_counted() -> None:
    kinds = ["eventfd", "eventfd", "memfd:ram", "eventfd"]
    fds = [{"fd": number, "is": kind} for number, kind in enumerate(kinds)]
    assert row(**ASKED, fds=fds).endswith("fds 2 x eventfd, memfd:ram, eventfd")


def test_an_index_is_that_of_an_interrupt_where_the_command_is_about_interrupts() -> None:
    asked = {**ASKED, "command": "DEVICE_SET_IRQS"}
    assert "index=MSI" in row(**asked, fields={"index": 1})
    assert "index=BAR1" in row(**ASKED, fields={"index": 1})
    assert "index=77" in row(**ASKED, fields={"index": 77})


def test_a_connection_is_introduced_with_its_name() -> None:
    found = row(event="connected", peer={"pid": 7})
    assert found.split()[2:] == [
        *("2", "--", "connected:"),
        *("channel=vfio-user:/x.sock", "peer={pid=7}"),
    ]


def test_an_event_shows_its_details() -> None:
    found = row(event="time-out", id=4, command="REGION_READ", reason="no reply within 5 s")
    assert found.endswith("time-out: id=4 command=REGION_READ reason=no reply within 5 s")


@pytest.mark.parametrize(
    ("members", "bad"),
    [
        (ASKED, False),
        ({**ANSWERED, "error": "EIO"}, True),
        ({**ASKED, "undecoded": {}}, True),
        ({"event": "time-out"}, True),
        ({"event": "late reply"}, True),
        ({"event": "protocol error"}, True),
        ({"event": "not sent"}, True),
        ({"event": "lost"}, True),
        ({"event": "lost", "role": "server"}, False),
        ({"event": "closed"}, False),
    ],
)
def test_what_went_wrong_is_marked(members: dict[str, Any], bad: bool) -> None:
    found = line(**members)
    assert found.bad is bad
    assert found.row(0).startswith("!" if bad else " ")


def test_names_that_a_peer_has_chosen_cannot_steer_a_terminal() -> None:
    found = row(**ASKED, fds=[{"fd": 3, "is": "memfd:\x1b[2J\x07\n\ud800"}])
    assert found.endswith(r"fds memfd:\x1b[2J\x07\n\ud800")


# Whatever is in the file


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no JSON"),
        (b"\n", "no JSON"),
        (b"{", "no JSON"),
        (b"null", "no object"),
        (b"[]", "no object"),
        (b"\xff\xfe", "can't decode"),
        (b'{"mono":1}', "missing"),
        (b"[" * 100_000, "nested"),
        (json.dumps({**WHOSE, "direction": "sent"}).encode(), "missing"),
        (json.dumps({**WHOSE, **ASKED, "size": "big"}).encode(), "size is of the wrong type"),
        (json.dumps({**WHOSE, **ASKED, "mono": 1e300}).encode(), "mono is out of range"),
        (json.dumps({**WHOSE, **ASKED, "us": 10**400}).encode(), "us is out of range"),
        (json.dumps({**WHOSE, **ASKED, "mono": float("nan")}).encode(), "NaN is no JSON"),
    ],
)
def test_what_is_no_line_of_a_trace_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Line.parse(data)


@pytest.mark.parametrize("data", [{"bytes": "x", "hex": "00"}, {"bytes": 1, "hex": [1]}])
def test_what_only_looks_like_data_is_shown_as_it_is(data: dict[str, Any]) -> None:
    assert row(**ASKED, fields={"data": data}).split("data=")[1].startswith("{bytes=")


def test_deep_nesting_is_cut() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"x": [deep]}
    assert "..." in row(**ASKED, fields=deep)


JSON: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bytes", "hex", "region", "index", "is"]), inner)
    ),
    max_leaves=8,
)
MEMBERS = st.dictionaries(
    st.sampled_from([*WHOSE, *ASKED, "event", "fields", "fds", "undecoded", "request", "us"]),
    JSON,
)


@given(members=MEMBERS, base=st.sampled_from([WHOSE, {**WHOSE, **ASKED}]))
@MODERATE
def test_any_json_is_printed_or_refused(members: dict[str, Any], base: dict[str, Any]) -> None:
    summary = Summary()
    try:
        found = Line.parse(json.dumps({**base, **members}).encode())
    except ValueError:
        return
    summary.add(found)
    for text in (found.row(0), summary.as_text()):
        assert text.replace("\n", "").isprintable()
    assert "\n" not in found.row(0)


# What it comes to


def summed(*lines: Line) -> list[dict[str, object]]:
    """The rows of a summary."""
    summary = Summary()
    for entry in lines:
        summary.add(entry)
    return summary.records()


def test_a_command_is_counted_with_its_replies_errors_and_bytes() -> None:
    found, _ = summed(
        line(**ASKED),
        line(**ANSWERED, us=10.0),
        line(**ASKED),
        line(**ANSWERED, us=30.0, error="EIO"),
        line(**ASKED),
        line(**ASKED, flags="NO_REPLY"),
    )
    assert found == {
        "end": "client",
        "command": "REGION_READ",
        "count": 4,
        "unanswered": 1,
        "errors": 1,
        "bytes": 4 * 32 + 2 * 36,
        "p50 us": 10.0,
        "p90 us": 30.0,
        "p99 us": 30.0,
        "max us": 30.0,
    }


def test_bytes_that_were_never_read_are_not_counted() -> None:
    refused = {"reason": "refused for its header", "bytes": 0, "hex": "", "unread": 1 << 30}
    found, _ = summed(line(**{**ASKED, "size": 16 + (1 << 30)}, undecoded=refused))
    assert found["bytes"] == 16


def test_percentiles_are_times_that_were_seen() -> None:
    found, _ = summed(*(line(**ANSWERED, us=float(us)) for us in range(1, 1001)))
    assert [found[name] for name in ("p50 us", "p90 us", "p99 us", "max us")] == [
        *(500.0, 900.0, 990.0, 1000.0)
    ]


def test_the_summary_says_when_and_how_long() -> None:
    summary = Summary()
    summary.add(line(**ASKED))
    summary.add(line(**ANSWERED, mono=12.5))
    assert "2.500000 s, from 2026-01-01T00:00:00" in summary.as_text()


def test_each_end_has_rows_of_its_own() -> None:
    found = summed(line(**ASKED), line(**ASKED, role="server"), line(event="lost"))
    assert [(entry.get("end"), entry.get("command")) for entry in found] == [
        ("client", "REGION_READ"),
        ("server", "REGION_READ"),
        ("client", None),
        (None, None),
    ]
