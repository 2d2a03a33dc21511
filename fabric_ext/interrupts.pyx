"""Calls that Ctrl-C does not interrupt: what it raises comes behind them.

Owns the handler of SIGINT while such a call runs. It takes the place of Python's own handler only, in the main thread
only: a handler that the application has set is called at once, as everywhere.
"""

import os
import signal
import threading

from cpython.pythread cimport PyThread_get_thread_ident


cdef enum:
    TRIES = 100                  # to set a handler, while other signals come whose handlers raise

cdef unsigned long MAIN = threading.main_thread().ident
cdef object _held_back = None        # what a signal handler raised while that had to wait


def _hold_back(number, frame):
    """Ctrl-C, while what it raises has to wait."""
    global _held_back
    _held_back = KeyboardInterrupt()


cdef int _handle_interrupts(object handler) except -1:
    """Have `handler` called for Ctrl-C; what handlers of signals that have just come raise is held back.

    Raises what signal.signal() itself raises each time, as ValueError outside the main interpreter.
    """
    global _held_back
    cdef int i
    cdef object raised = None
    for i in range(TRIES):
        try:
            signal.signal(signal.SIGINT, handler)  # calls them first
        except BaseException as error:             # of a handler or its own: only the latter comes again and again
            raised = error
        else:
            if raised is not None:
                _held_back = raised
            return 0
    raise raised


cdef bint hold_interrupts() except -1:
    """Have Ctrl-C wait, until `release_interrupts` where this is true; it waits already or never comes where it is not."""
    if (<unsigned long>PyThread_get_thread_ident() != MAIN
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler):
        return False
    _handle_interrupts(_hold_back)
    return True


cdef int release_interrupts() except -1:
    """Raise what waited."""
    global _held_back
    _handle_interrupts(signal.default_int_handler)
    error, _held_back = _held_back, None
    if error is not None:
        raise error
    return 0


def _after_fork():
    """This is a child: its main thread is this one, and nothing waits that another thread of the parent held back."""
    global MAIN, _held_back
    cdef unsigned long me = PyThread_get_thread_ident()
    if me == MAIN:
        return                                     # what this thread holds back it releases in the child, too
    MAIN = me
    if signal.getsignal(signal.SIGINT) is _hold_back:
        _handle_interrupts(signal.default_int_handler)
    _held_back = None


os.register_at_fork(after_in_child=_after_fork)


def uninterrupted(function, *arguments):
    """Call `function`, which does not wait; what Ctrl-C raises comes behind it."""
    cdef bint held = hold_interrupts()
    try:
        return function(*arguments)
    finally:
        if held:
            release_interrupts()


def guarded(function, end):
    """Call `function`, and then, however that ended, `end()`, which Ctrl-C does not interrupt; return what it returned.

    A `finally` in Python code can itself be interrupted before it has done anything.
    """
    try:
        return function()
    finally:
        uninterrupted(end)
