"""The races of a client without an event loop over TLS: the tests of plain connections that mean the same, as they are.

Over TLS the loop of the client reads, in a step, and not the thread that waits: so threads, signals, forks, closes and
the keeper meet other code there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

import fabric.sync
from integration import test_sync, test_sync_process
from integration.raw import RawServer
from integration.test_sync import there
from support.serving import echo, serve
from support.threads import Elsewhere
from support.tls import authority, certificate_file, client_context, server_context

__all__ = ["there"]

pytestmark = test_sync_process.pytestmark

THE_SAME = {
    test_sync: (
        "messages_come_back",
        "messages_of_all_sizes_come_back",
        "answers_to_pipelined_messages_keep_their_order",
        "a_second_message_leaves_at_once",
        "a_close_by_another_thread_ends_a_message_in_parts",
        "a_timeout_loses_nothing",
        "zero_takes_only_what_is_there",
        "a_full_queue_stops_reading_and_loses_nothing",
        "a_call_in_a_thread_that_runs_a_loop",
        "any_thread_may_send",
        "one_thread_receives",
        "close_ends_a_thread_in_recv",
        "close_ends_a_thread_in_recv_though_the_peer_does_not_answer",
        "a_close_that_another_one_has_overtaken_is_done",
        "close_ends_a_thread_in_send",
        "a_sender_waits_while_another_thread_receives",
        "a_ping_of_one_thread_while_another_receives",
        "pings_are_answered_while_nobody_receives",
        "the_peers_close_is_noticed_while_nobody_receives",
        "the_heartbeat_finds_a_dead_peer_while_nobody_receives",
        "what_comes_for_one_client_is_no_work_for_the_others",
        "a_thread_that_waits_for_a_message_has_it_to_itself",
        "what_was_gathered_leaves_though_its_thread_does_not_come_back",
        "messages_that_came_meanwhile_are_there",
        "a_client_that_is_dropped_is_closed",
        "what_came_before_a_fault_in_the_same_read_can_be_answered",
        "a_fault_is_told_though_nobody_receives_any_more",
        "close_tells_a_fault_that_was_put_off",
        "iteration_goes_on_over_a_reconnection",
        "callbacks_may_wait",
        "it_reconnects_while_nobody_receives",
        "a_callback_may_close",
        "another_thread_may_close_during_on_connect",
    ),
    test_sync_process: (
        "an_interrupted_recv_leaves_the_client_usable",
        "a_signal_handler_may_use_the_client",
        "a_signal_handler_may_close",
        "an_interrupted_close_drops_the_connection",
        "an_interrupted_connect_leaves_nothing",
        "an_interruption_anywhere_leaves_the_client_usable_or_closed",
        "ctrl_c_is_not_lost_where_a_task_ends",
        "a_connect_that_is_interrupted_anywhere_leaves_nothing",
        "a_close_that_is_interrupted_anywhere_has_closed_or_done_nothing",
        "a_cork_that_is_interrupted_anywhere_is_off",
        "who_wakes_the_thread_that_waits_may_be_interrupted",
        "a_child_has_nothing_of_it",
        "a_process_ends_though_a_client_was_not_closed",
        "a_process_ends_though_a_daemon_thread_waits",
        "a_process_ends_in_the_midst_of_a_reconnection",
        "a_child_may_connect_by_itself_and_gets_errors_from_what_is_the_parents",
        "multiprocessing_children_end",
    ),
}

for module, names in THE_SAME.items():
    for name in names:
        globals()[f"test_{name}"] = getattr(module, f"test_{name}")


def secure_start(there: Elsewhere, handler: Any = echo, **options: Any) -> Any:
    return there(serve(there.stack, handler, ssl=server_context(), **options))


def secure_program(folder: Path) -> str:
    """The beginning of the programs, with TLS at both ends."""
    trusted = folder / "authority.pem"
    authority().cert_pem.write_to_path(str(trusted))
    contexts = f"""
    import ssl
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain({str(certificate_file(folder))!r})
    trusting = ssl.create_default_context(cafile={str(trusted)!r})
"""
    text = test_sync_process.SERVER
    for plain, secure in (
        ('"127.0.0.1:0", echo)', '"127.0.0.1:0", echo, ssl=of_server)'),
        (
            'connect(f"ws://127.0.0.1:{port}/", **options)',
            'connect(f"wss://127.0.0.1:{port}/", ssl=trusting, **options)',
        ),
        ("    started = threading.Event()\n", contexts + "    started = threading.Event()\n"),
    ):
        assert text.count(plain) == 1
        text = text.replace(plain, secure)
    return text


@pytest.fixture(autouse=True)
def over_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have both modules serve and connect over TLS."""
    trusting = client_context()

    for module in THE_SAME:
        monkeypatch.setattr(module, "start", secure_start)
        monkeypatch.setattr(module, "url", lambda server: f"wss://127.0.0.1:{server.port}/")
        monkeypatch.setattr(module, "connect", functools.partial(fabric.sync.connect, ssl=trusting))
    monkeypatch.setattr(test_sync, "RawServer", functools.partial(RawServer, ssl=server_context()))
    monkeypatch.setattr(test_sync_process, "SERVER", secure_program(tmp_path))
