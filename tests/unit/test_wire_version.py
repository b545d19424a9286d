# SPDX-License-Identifier: BSD-3-Clause
"""VERSION's JSON: every key, its default, and everything that a peer may get wrong in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvfio.wire.version import MAX_FDS, Capabilities, Limits
from tests.unit.wire_examples import CAPABILITIES, MODERATE

BEYOND_64_BIT = 1 << 64
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def text(capabilities: Any) -> bytes:
    """The JSON text with these capabilities."""
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


def refused(data: bytes) -> str:
    """Why ``data`` is refused."""
    with pytest.raises(ValueError, match=r".") as caught:
        Capabilities.decode(data)
    return str(caught.value)


# Keys


KEYS = {
    "max_msg_fds": ({"max_msg_fds": 8}, Capabilities(max_msg_fds=8)),
    "max_data_xfer_size": (
        {"max_data_xfer_size": 1048576},
        Capabilities(max_data_xfer_size=1048576),
    ),
    "max_dma_maps": ({"max_dma_maps": 65535}, Capabilities(max_dma_maps=65535)),
    "pgsizes": ({"pgsizes": 4096}, Capabilities(pgsizes=4096)),
    "write_multiple": ({"write_multiple": True}, Capabilities(write_multiple=True)),
    "long-writes": ({"pyvfio_long_writes": True}, Capabilities(long_writes=True)),
    "write_multiple-false": ({"write_multiple": False}, Capabilities(write_multiple=False)),
    "twin_socket": ({"twin_socket": {"supported": True}}, Capabilities(twin_socket=True)),
    "twin_socket-false": (
        {"twin_socket": {"supported": False}},
        Capabilities(twin_socket=False),
    ),
    "twin_socket-default-is-false": ({"twin_socket": {}}, Capabilities(twin_socket=False)),
    "twin_socket-with-fd_index": (
        {"twin_socket": {"supported": True, "fd_index": 0}},
        Capabilities(twin_socket=True, twin_fd_index=0),
    ),
    "none": ({}, Capabilities()),
}


@pytest.mark.parametrize(("sent", "expected"), KEYS.values(), ids=KEYS)
def test_key_is_read(sent: dict[str, Any], expected: Capabilities) -> None:
    assert Capabilities.decode(text(sent)) == expected


def test_everything_that_qemu_sends_is_read() -> None:
    sent = (
        b'{"capabilities":{"migration":{"pgsize":4096,"max_bitmap_size":268435456},'
        b'"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096,"max_dma_maps":65535,'
        b'"write_multiple":true}}\0'
    )
    assert Capabilities.decode(sent) == Capabilities(
        max_msg_fds=16,
        max_data_xfer_size=1048576,
        max_dma_maps=65535,
        pgsizes=4096,
        write_multiple=True,
    )


UNKNOWN = {
    "capability": b'{"capabilities":{"migration":{"pgsize":4096},"max_msg_fds":8}}\0',
    "beside-capabilities": b'{"name":"edu","capabilities":{"max_msg_fds":8}}\0',
    "in-twin_socket": b'{"capabilities":{"max_msg_fds":8,"twin_socket":{"path":"/x"}}}\0',
    "spelled-otherwise": b'{"capabilities":{"max_msg_fds":8,"Max_Msg_Fds":9}}\0',
    "not-ascii": '{"capabilities":{"größe":1,"max_msg_fds":8}}\0'.encode(),
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_key_is_ignored(data: bytes) -> None:
    assert Capabilities.decode(data).max_msg_fds == 8


@pytest.mark.parametrize("data", [b"{}\0", b'{"capabilities":{}}\0', b" {\n}\t\0"])
def test_capabilities_may_be_left_out(data: bytes) -> None:
    assert Capabilities.decode(data) == Capabilities()


# Ranges


RANGES = {
    "max_msg_fds": (0, 1 << 32),
    "max_data_xfer_size": (8, 1 << 32),
    "max_dma_maps": (1, 1 << 32),
    "pgsizes": (1, (1 << 64) - 1),
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, ends in RANGES.items() for value in ends],
)
def test_number_at_the_end_of_its_range_is_taken(key: str, value: int) -> None:
    assert getattr(Capabilities.decode(text({key: value})), key) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, (low, high) in RANGES.items() for value in (low - 1, high + 1, -1)],
)
def test_number_out_of_range_is_refused(key: str, value: int) -> None:
    assert key in refused(text({key: value}))


@pytest.mark.parametrize("pgsizes", [1 << 31, 1 << 63, 3 << 40])
def test_pages_that_are_all_huge_are_refused(pgsizes: int) -> None:
    assert "pgsizes" in refused(text({"pgsizes": pgsizes}))


@pytest.mark.parametrize("index", [0, MAX_FDS - 1])
def test_fd_index_at_the_end_of_its_range_is_taken(index: int) -> None:
    sent = text({"twin_socket": {"supported": True, "fd_index": index}})
    assert Capabilities.decode(sent).twin_fd_index == index


@pytest.mark.parametrize("index", [-1, MAX_FDS, BEYOND_64_BIT])
def test_fd_index_out_of_range_is_refused(index: int) -> None:
    assert "fd_index" in refused(text({"twin_socket": {"supported": True, "fd_index": index}}))


# Types


WRONG: dict[str, Any] = {
    "null": None,
    "string": "8",
    "list": [8],
    "object": {"value": 8},
    "fraction": 8.5,
    "whole-float": 8.0,
}
NO_NUMBER = WRONG | {"true": True, "false": False}
NO_BOOLEAN = WRONG | {"0": 0, "1": 1}
NO_OBJECT = {name: value for name, value in WRONG.items() if name != "object"} | {"true": True}


@pytest.mark.parametrize("value", NO_NUMBER.values(), ids=NO_NUMBER)
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    for key in RANGES:
        assert key in refused(text({key: value}))


@pytest.mark.parametrize("value", NO_NUMBER.values(), ids=NO_NUMBER)
def test_fd_index_that_is_no_whole_number_is_refused(value: Any) -> None:
    assert "fd_index" in refused(text({"twin_socket": {"supported": True, "fd_index": value}}))


@pytest.mark.parametrize("value", NO_BOOLEAN.values(), ids=NO_BOOLEAN)
@pytest.mark.parametrize("key", ["write_multiple", "pyvfio_long_writes"])
def test_a_flag_that_is_no_boolean_is_refused(key: str, value: Any) -> None:
    assert key in refused(text({key: value}))


@pytest.mark.parametrize("value", NO_BOOLEAN.values(), ids=NO_BOOLEAN)
def test_twin_socket_support_that_is_no_boolean_is_refused(value: Any) -> None:
    assert "twin_socket" in refused(text({"twin_socket": {"supported": value}}))


@pytest.mark.parametrize("value", NO_OBJECT.values(), ids=NO_OBJECT)
def test_twin_socket_that_is_no_object_is_refused(value: Any) -> None:
    assert "twin_socket" in refused(text({"twin_socket": value}))


@pytest.mark.parametrize("value", NO_OBJECT.values(), ids=NO_OBJECT)
def test_capabilities_that_are_no_object_are_refused(value: Any) -> None:
    assert "capabilities" in refused(text(value))


@pytest.mark.parametrize("value", NO_OBJECT.values(), ids=NO_OBJECT)
def test_document_that_is_no_object_is_refused(value: Any) -> None:
    refused(json.dumps(value).encode() + b"\0")


# Text


NO_JSON = {
    "empty": b"\0",
    "words": b"hello\0",
    "cut-short": b'{"capabilities":{"max_msg_fds":8}\0',
    "something-behind": b"{}{}\0",
    "two-nuls": b"{}\0\0",
    "nul-within": b'{"capa\0bilities":{}}\0',
    "comma-too-many": b'{"capabilities":{"max_msg_fds":8,}}\0',
    "single-quotes": b"{'capabilities':{}}\0",
    "nan": b'{"capabilities":{"max_msg_fds":NaN}}\0',
    "infinity": b'{"capabilities":{"pgsizes":Infinity}}\0',
    "nan-under-an-unknown-key": b'{"x":NaN}\0',
    "infinity-under-an-unknown-key": b'{"x":-Infinity}\0',
}


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("data", [b"{}", b"", b'{"capabilities":{}}\n'])
def test_text_without_its_nul_is_refused(data: bytes) -> None:
    assert "NUL" in refused(data)


NO_UTF_8 = {
    "stray-byte": b'{"x":"\xff"}\0',
    "cut-sequence": b'{"x":"\xc3"}\0',
    "overlong": b'{"x":"\xc0\x80"}\0',
    "surrogate": b'{"x":"\xed\xa0\x80"}\0',
    "utf-16": "{}".encode("utf-16-le") + b"\0",
    "utf-32": "{}".encode("utf-32-le") + b"\0",
}


@pytest.mark.parametrize("data", NO_UTF_8.values(), ids=NO_UTF_8)
def test_what_is_not_utf_8_is_refused(data: bytes) -> None:
    refused(data)


TWICE = {
    "known-key": b'{"capabilities":{"max_msg_fds":8,"max_msg_fds":9}}\0',
    "same-value": b'{"capabilities":{"max_msg_fds":8,"max_msg_fds":8}}\0',
    "capabilities": b'{"capabilities":{},"capabilities":{}}\0',
    "within-twin_socket": b'{"capabilities":{"twin_socket":{"fd_index":0,"fd_index":1}}}\0',
    "spelled-with-an-escape": b'{"capabilities":{"pgsizes":1,"pg\\u0073izes":2}}\0',
}


@pytest.mark.parametrize("data", TWICE.values(), ids=TWICE)
def test_key_that_stands_there_twice_is_refused(data: bytes) -> None:
    assert "twice" in refused(data)


DEEP = {
    "lists": b"[" * 60_000 + b"\0",
    "closed-lists": b"[" * 30_000 + b"]" * 30_000 + b"\0",
    "objects": b'{"a":' * 10_000 + b"\0",
    "under-an-unknown-key": b'{"x":' + b"[" * 60_000 + b"\0",
}


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP)
def test_text_nested_too_deeply_is_refused(data: bytes) -> None:
    assert "deep" in refused(data)


@pytest.mark.parametrize("digits", [20, 4300, 60_000])
def test_huge_number_is_refused(digits: int) -> None:
    for sign in ("", "-"):
        refused(f'{{"capabilities":{{"pgsizes":{sign}{"9" * digits}}}}}\0'.encode())


@given(document=JSON_VALUES)
@MODERATE
def test_any_json_gives_capabilities_or_value_error(document: Any) -> None:
    try:
        found = Capabilities.decode(json.dumps(document).encode() + b"\0")
    except ValueError:
        return
    assert isinstance(found, Capabilities)


@given(
    values=st.dictionaries(
        st.sampled_from([*RANGES, "write_multiple", "pyvfio_long_writes", "twin_socket"]),
        JSON_VALUES,
        min_size=1,
    )
)
@example(values={"twin_socket": {"supported": True, "fd_index": 1}})
@MODERATE
def test_known_keys_with_any_value_give_sane_capabilities_or_value_error(
    values: dict[str, Any],
) -> None:
    try:
        found = Capabilities.decode(text(values))
    except ValueError:
        return
    numbers = {key: getattr(found, key) for key in RANGES if key in values}
    assert all(RANGES[key][0] <= value <= RANGES[key][1] for key, value in numbers.items())


@given(data=st.binary(max_size=100))
@MODERATE
def test_any_bytes_give_capabilities_or_value_error(data: bytes) -> None:
    try:
        found = Capabilities.decode(data + b"\0")
    except ValueError:
        return
    assert isinstance(found, Capabilities)


# Writing


def test_text_is_compact_and_ends_with_nul() -> None:
    assert Capabilities(max_msg_fds=8, max_data_xfer_size=1048576).encode() == (
        b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}\0'
    )


def test_key_without_value_is_not_written() -> None:
    assert Capabilities().encode() == b'{"capabilities":{}}\0'


def test_twin_socket_is_an_object() -> None:
    assert Capabilities(twin_socket=True, twin_fd_index=0).encode() == (
        b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'
    )


@given(capabilities=CAPABILITIES)
@MODERATE
def test_decode_reads_back_what_encode_wrote(capabilities: Capabilities) -> None:
    assert Capabilities.decode(capabilities.encode()) == capabilities


# What holds for sending


SPECIFIED = Limits(
    max_msg_fds=1,
    max_data_xfer_size=1048576,
    max_dma_maps=65535,
    pgsizes=4096,
    write_multiple=False,
)
OWN = Capabilities(
    max_msg_fds=16,
    max_data_xfer_size=1 << 20,
    max_dma_maps=1000,
    pgsizes=4096,
    write_multiple=True,
)


@pytest.mark.parametrize("peer", [None, Capabilities()], ids=["no-json", "no-keys"])
def test_defaults_are_those_of_the_specification(peer: Capabilities | None) -> None:
    assert Limits.of(peer, Capabilities()) == SPECIFIED


CLAMPED = {
    "below-our-own": (Capabilities(max_data_xfer_size=4096), "max_data_xfer_size", 4096),
    "data-above-our-own": (Capabilities(max_data_xfer_size=1 << 32), "max_data_xfer_size", 1 << 20),
    "maps-above-our-own": (Capabilities(max_dma_maps=1 << 32), "max_dma_maps", 1000),
    "default-above-our-own": (Capabilities(), "max_dma_maps", 1000),
    "fds-above-our-own-are-for-the-peer-to-take": (Capabilities(max_msg_fds=32), "max_msg_fds", 32),
    "fds-above-what-linux-passes": (Capabilities(max_msg_fds=1 << 32), "max_msg_fds", 253),
    "no-fds-at-all": (Capabilities(max_msg_fds=0), "max_msg_fds", 0),
    "pgsizes-of-the-peer": (Capabilities(pgsizes=0x4000_1000), "pgsizes", 0x4000_1000),
    "write-multiple-by-both": (Capabilities(write_multiple=True), "write_multiple", True),
    "write-multiple-refused": (Capabilities(write_multiple=False), "write_multiple", False),
}


@pytest.mark.parametrize(("peer", "key", "expected"), CLAMPED.values(), ids=CLAMPED)
def test_limit_is_the_peers_but_not_beyond_our_own(
    peer: Capabilities, key: str, expected: int
) -> None:
    assert getattr(Limits.of(peer, OWN), key) == expected


@pytest.mark.parametrize("key", ["write_multiple", "long_writes"])
def test_what_only_the_peer_supports_is_off(key: str) -> None:
    assert not getattr(Limits.of(Capabilities(**{key: True}), Capabilities()), key)
    assert getattr(Limits.of(Capabilities(**{key: True}), Capabilities(**{key: True})), key)


@given(peer=CAPABILITIES, own=CAPABILITIES)
@MODERATE
def test_limits_never_exceed_what_either_side_stated(peer: Capabilities, own: Capabilities) -> None:
    limits = Limits.of(peer, own)
    stated = [
        (getattr(limits, key), getattr(side, key))
        for key in ("max_data_xfer_size", "max_dma_maps")
        for side in (peer, own)
    ]
    assert all(limit <= value for limit, value in stated if value is not None)
    assert limits.max_msg_fds <= MAX_FDS
