"""Which tests of the asyncio client run over `fabric.sync` too, as they stand: they mean the same without a loop."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType

import pytest

from support.threaded import ThreadedClients

KIND = "blocking"

CANCELS = "a call that waits in a thread cannot be cancelled; it has a timeout, or close() ends it"
CALLBACK_CANCELLED = "a plain function that waits cannot be cancelled: what is behind it waits for its return"
ASYNC_PARTS = "the parts of a message are a plain iterable"
COROUTINE_FUNCTION = "the functions that fabric.sync is given are plain ones"
ON_MESSAGE = "fabric.sync has no on_message"
ORDER = "calls of several threads begin in any order"

LEFT_OUT: dict[str, dict[str, str]] = {
    "integration/test_client_close": {},
    "integration/test_client_connect": {
        "test_clients_with_the_same_heartbeat_share_it": "the clients of one loop do, and here each has its own",
        "test_connect_can_be_cancelled_at_any_moment": CANCELS,
        "test_connect_is_a_coroutine_to_asyncio": "connect() of fabric.sync is none",
        "test_on_message_is_called_right_where_a_message_arrives": ON_MESSAGE,
        "test_what_came_with_the_head_is_answered_before_a_fault_behind_it_is_seen": ON_MESSAGE,
    },
    "integration/test_client_control": {
        "test_an_outage_that_is_waited_for": ORDER,
        "test_nobody_overtakes_those_who_wait_for_the_end_of_an_outage": ORDER,
        "test_on_disconnect_cannot_wait_for_what_comes_after_it": COROUTINE_FUNCTION,
        "test_the_first_connection_is_not_tried_for_ever": CANCELS,
        "test_url_and_headers_are_asked_at_each_attempt": COROUTINE_FUNCTION,
    },
    "integration/test_client_dial": {
        "test_a_context_that_does_not_come_counts_as_connecting": COROUTINE_FUNCTION,
        "test_a_coroutine_function_may_make_the_context": COROUTINE_FUNCTION,
    },
    "integration/test_client_final": {
        "test_a_callback_that_raises_is_final": ON_MESSAGE,
    },
    "integration/test_client_life": {
        "test_a_connection_lost_while_on_connect_waits_is_raised_by_connect": CALLBACK_CANCELLED,
        "test_a_function_for_tls_that_raises_ends_the_repair": "CancelledError goes to the thread that calls it",
    },
    "integration/test_client_proxy": {},
    "integration/test_client_reconnect": {
        "test_iteration_waits_through_outages": "a loss is seen by who looks: what is sent before that may be lost",
        "test_parts_and_pings_end_with_their_connection": ASYNC_PARTS,
        "test_a_cancelled_close_leaves_a_client_that_goes_on": CANCELS,
        "test_close_does_not_wait_for_ever_for_a_callback": CALLBACK_CANCELLED,
        "test_on_reconnect_is_cancelled_by_the_next_loss": CALLBACK_CANCELLED,
        "test_recv_can_be_cancelled_in_an_outage_and_loses_nothing": CANCELS,
        "test_two_closes_of_which_one_is_cancelled": CANCELS,
    },
    "integration/test_client_redirect": {},
    "integration/test_client_session": {
        "test_a_connection_that_ends_meanwhile_fails_the_attempt": CALLBACK_CANCELLED,
        "test_a_function_that_cannot_be_called_is_refused_before": "the adapter wraps the function",
        "test_close_ends_a_repair_that_is_in_it": CALLBACK_CANCELLED,
        "test_half_a_message_is_no_end": ASYNC_PARTS,
        "test_more_came_than_its_queue_holds": ON_MESSAGE,
        "test_what_came_behind_the_answer_goes_to_on_message": ON_MESSAGE,
        "test_what_the_application_keeps_at_its_client_it_finds": "a class of one's own cannot be connected",
    },
    "fault/test_busy_poll": {},
}
"""Module -> its tests that do not mean the same, each with the reason."""


def means_the_same(path: Path, test: str) -> bool:
    """Does `test` of the module at `path` run over `fabric.sync` too?"""
    left_out = LEFT_OUT.get(f"{path.parent.name}/{path.stem}")
    return left_out is not None and test not in left_out


def replace_client(module: ModuleType, patch: pytest.MonkeyPatch, stack: contextlib.AsyncExitStack) -> None:
    """Have `module` connect by `fabric.sync`, until its test ends."""
    clients = ThreadedClients()
    stack.push_async_callback(clients.end)
    patch.setattr(module, "WebSocketClient", clients)
