# SPDX-License-Identifier: BSD-3-Clause
"""Where known servers differ from the specification.

Each entry makes a test on a server an expected failure, strictly: where the server has been mended
the test says so, and the entry goes.  libvfio-user is that of commit efd091b.
"""

from __future__ import annotations

from typing import NamedTuple

GPIO, SERVER = "gpio-pci-idio-16", "server"
LIBVFIO_USER = (GPIO, SERVER)


class Fault(NamedTuple):
    """A test that servers fail, and why.

    :ivar cases: the parameters of the test that fail, as pytest names them; empty for all.
    """

    servers: tuple[str, ...]
    test: str
    reason: str
    cases: tuple[str, ...] = ()


FAULTS = (
    Fault(
        LIBVFIO_USER,
        "test_a_message_may_come_in_two_pieces",
        "a header or a body that comes in pieces is an error (issue 306)",
    ),
    Fault(
        LIBVFIO_USER,
        "test_the_capabilities_are_among_those_proposed",
        "VERSION is answered with max_msg_fds, max_data_xfer_size and migration, whatever the"
        " client proposed",
    ),
    Fault(
        LIBVFIO_USER,
        "test_version_data_of_another_format_is_refused",
        "JSON that is an array is taken for an object without capabilities",
        ("an array",),
    ),
    Fault(
        LIBVFIO_USER,
        "test_a_map_over_an_existing_one_gets_eexist",
        "an overlap is EINVAL, and the same range again is accepted (issue 463)",
    ),
    Fault(
        LIBVFIO_USER,
        "test_the_same_map_again_gets_eexist",
        "the same map again is accepted (issue 463)",
    ),
    Fault(
        LIBVFIO_USER,
        "test_the_program_takes_the_path_of_its_socket_as_an_option",
        "the samples take the path alone, not --socket-path",
    ),
    Fault(
        (GPIO,),
        "test_a_client_may_go_in_the_middle_of_a_message",
        "a descriptor that came with less than a header is never closed",
        ("3",),
    ),
    Fault(
        (GPIO,),
        "test_what_a_device_has_saved_another_of_its_kind_loads",
        "MIG_DATA_WRITE is refused as if not all had been taken (mended by pull request 874)",
    ),
    Fault(
        (GPIO,),
        "test_a_device_is_handed_over_to_another_of_its_kind",
        "MIG_DATA_WRITE is refused as if not all had been taken (mended by pull request 874)",
    ),
    Fault(
        (GPIO,),
        "test_the_command_moves_a_device",
        "MIG_DATA_WRITE is refused as if not all had been taken (mended by pull request 874)",
    ),
    Fault(
        (GPIO,),
        "test_what_is_read_in_precopy_goes_before_the_rest",
        "MIG_DATA_WRITE is refused as if not all had been taken (mended by pull request 874)",
    ),
    Fault(
        (SERVER,),
        "test_what_is_read_in_precopy_goes_before_the_rest",
        "the sample gives all of its state again after pre-copy, and takes it once",
    ),
    Fault(
        (SERVER,),
        "test_as_many_maps_as_a_server_says_by_saying_nothing_are_possible",
        "the sample ends at the 97th map",
    ),
    Fault(
        (SERVER,),
        "test_what_is_written_by_mapping_is_read_by_messages",
        "a REGION_READ of BAR 1 gives the start of the BAR, whatever the offset",
    ),
    Fault(
        (SERVER,),
        "test_a_register_that_a_device_refuses_to_read_is_refused_with_a_header_alone",
        "the error reply to a region access that the device refused has the payload of a reply",
    ),
)


def known_fault(server: str, test: str, case: str) -> Fault | None:
    """The fault that makes a test fail on a server."""
    for fault in FAULTS:
        if server in fault.servers and test == fault.test and case in (fault.cases or (case,)):
            return fault
    return None
