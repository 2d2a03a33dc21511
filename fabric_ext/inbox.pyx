# cython: binding=False
"""The receiving end of a connection: a queue, and a `recv()` that is resumed the moment something arrives.

Owns the queue of received items and the one task that may wait for them. Knows nothing of sockets or frames.

How a task is resumed. `await inbox.recv()` yields a future, to which the task adds its wakeup as a callback. The future
is never finished: `put()` takes the callback back and calls it right there, inside the task's context, where asyncio
would have scheduled it for the next turn of the loop. No handle, no turn, and the same future serves the next wait.
That is allowed only while no other task runs on this thread (`_may_step`); otherwise the future is finished, as usual.

Why nothing is lost. An item belongs to the queue until the step in which the task takes it and its `await` returns; a
cancelled, closed or collected `Recv` never holds one.
"""

import asyncio
import sys

from cpython.exc cimport PyErr_Clear, PyErr_Occurred, PyErr_SetObject
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cython cimport final, freelist

cdef extern from "Python.h":
    int PyContext_Enter(object context) noexcept
    int PyContext_Exit(object context) noexcept
    PyObject* PyObject_CallOneArg(object function, object argument) noexcept
    # Declared to fail always: the exception that is set goes on from here.
    void reraise "(void)PyErr_Occurred"() except *

cdef extern from *:
    """
    static void fabric_set_iternext(PyObject *type, iternextfunc next) { ((PyTypeObject *)type)->tp_iternext = next; }

    /* A class made in Python gets a slot that looks `__anext__` up by name for each item. */
    static void fabric_inherit_anext(PyObject *type, PyObject *base) {
        ((PyTypeObject *)type)->tp_as_async->am_anext = ((PyTypeObject *)base)->tp_as_async->am_anext;
    }

    /* A StopIteration that only we hold, used again and again: who awaits takes its value and lets it go at once. One
       that somebody kept, or that has been through Python code, is left to them. */
    static PyObject *fabric_spare_stop;

    static void fabric_stop_with(PyObject *value) {
        PyStopIterationObject *stop = (PyStopIterationObject *)fabric_spare_stop;
        if (stop == NULL || Py_REFCNT(stop) != 1 || stop->traceback != NULL || stop->context != NULL) {
            PyObject *fresh = PyObject_CallNoArgs(PyExc_StopIteration);
            if (fresh == NULL)
                return;
            Py_XDECREF(fabric_spare_stop);
            fabric_spare_stop = fresh;
            stop = (PyStopIterationObject *)fresh;
        }
        PyObject *before = stop->value;
        Py_INCREF(value);
        stop->value = value;
        Py_XDECREF(before);
        Py_INCREF(stop);
    #if PY_VERSION_HEX >= 0x030C0000
        PyErr_SetRaisedException((PyObject *)stop);
    #else
        Py_INCREF(PyExc_StopIteration);
        PyErr_Restore(PyExc_StopIteration, (PyObject *)stop, NULL);
    #endif
    }

    /* Keep neither the last item alive nor, where Python code caught it, the frames of a traceback. */
    static void fabric_empty_stop(void) {
        PyStopIterationObject *stop = (PyStopIterationObject *)fabric_spare_stop;
        if (stop == NULL)
            return;
        if (stop->traceback != NULL || stop->context != NULL) {
            fabric_spare_stop = NULL;
            Py_DECREF(stop);
        } else if (Py_REFCNT(stop) == 1 && stop->value != NULL) {
            PyObject *before = stop->value;
            stop->value = NULL;
            Py_DECREF(before);
        }
    }
    """
    ctypedef PyObject* (*iternextfunc)(PyObject*) noexcept
    void set_iternext "fabric_set_iternext"(object type, iternextfunc next)
    void inherit_anext "fabric_inherit_anext"(object type, object base)
    void stop_with "fabric_stop_with"(object value) noexcept       # raises StopIteration(value)
    void empty_stop "fabric_empty_stop"() noexcept

cdef object current_task = asyncio.current_task

# Before Python 3.12 that is a Python function: look into the table that it looks into, which is the one of the C tasks.
cdef dict running = None if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks


cdef bint nobody_runs(object loop) except -1:
    """Does no task run on this thread, in this loop?"""
    if running is None:
        return current_task(loop) is None
    return PyDict_GetItemWithError(running, loop) == NULL


class _NoLoop:
    """Enough of a loop for a future that never calls anybody."""

    def get_debug(self):
        return False


# A finished future. A task's wakeup asks the future it is given for an exception, by name unless it is asyncio's own:
# so it is given this one, whatever it waited for.
cdef object FINISHED = asyncio.Future(loop=_NoLoop())
FINISHED.set_result(None)

cdef object Future = asyncio.Future

# From Python 3.14 on a future remembers who awaits it: one that serves again would remember them all.
cdef bint FUTURES_SERVE_AGAIN = sys.version_info < (3, 14)

cdef object EXHAUSTED = iter(())          # raises StopIteration for ever, without making an exception object


cdef object _concurrent_recv = RuntimeError


def bind_errors(*, concurrent_recv):
    """Set what is raised in a second task that calls `recv()` while another one waits: a class, called with a text."""
    global _concurrent_recv
    _concurrent_recv = concurrent_recv


def iterates_in_c(type cls not None):
    """Class decorator: let `async for` over a Python subclass of `Inbox` call what it inherits without a look-up."""
    if cls.__anext__ is cls.__base__.__anext__:
        inherit_anext(cls, cls.__base__)
    return cls


cdef class Inbox:
    """A queue with at most one waiting receiver.

    The part of a connection that receives; usable alone: `Inbox(loop)`, `put_item(x)`, `await recv()`, `end(error)`.
    """

    def __cinit__(self, *args, **kwargs):
        self._queue = Ring()

    def __init__(self, loop):
        self._loop = loop

    def recv(self):
        """Return an awaitable for the next item; it gives `None` after a normal end and raises after another one."""
        cdef Recv recv = Recv.__new__(Recv)
        recv._inbox = self
        return recv

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Recv recv = Recv.__new__(Recv)
        recv._inbox = self
        recv._iterating = True
        return recv

    def put_item(self, item):
        """Queue `item` and resume the waiting receiver, if there is one."""
        self.begin_delivery()
        self.put(item)

    def end(self, error=None):
        """No more items come: receivers get what is queued, then `None` (or `error`, raised)."""
        self.begin_delivery()
        self.finish(error)

    @property
    def queued(self):
        """Items received and not yet taken."""
        return self._queue.size

    # What a subclass may refine.

    cdef int taken(self, object item) except -1:
        """`item` left the queue."""
        return 0

    # What the frame callback calls.

    cdef void begin_delivery(self) noexcept:
        """Items come now, maybe several: who runs on this thread is found out when the first of them finds a waiter."""
        self._knows_tasks = False

    cdef int put(self, object item) except -1:
        self._queue.push(item)
        return self.hand_over()

    cdef int hand_over(self) except -1:
        """Resume the waiting receiver, if there is something for it."""
        if self._queue.size and self._waiter is not None:
            self.wake()
        return 0

    cdef int finish(self, object error) except -1:
        if self._end is None:
            self._end = True if error is None else error
            if self._waiter is not None:
                self.wake()
            self._wakeup = self._context = None
        return 0

    cdef int wake(self) except -1:
        if self._woken:
            return 0
        self._woken = True
        if not self._knows_tasks:
            self._knows_tasks = True
            self._may_step = nobody_runs(self._loop)
        # A future that is done already has been cancelled, and its task is about to be told.
        if not (self._may_step and self._step_in_place()) and not self._future.done():
            self._future.set_result(None)
            self._future = None
        return 0

    cdef bint _step_in_place(self) except -1:
        """Run the waiting task's wakeup in its context; False when it has to be scheduled."""
        cdef object future = self._future, callbacks
        cdef PyObject* result
        # Wakeups of the same task are equal, and a task has one context.
        if self._wakeup is None or not future.remove_done_callback(self._wakeup):
            callbacks = future._callbacks
            if callbacks is None or PyList_GET_SIZE(callbacks) != 1:
                return False
            self._wakeup, self._context = callbacks[0]
            future.remove_done_callback(self._wakeup)
        if PyContext_Enter(self._context) < 0:         # it is in use further up this very stack
            PyErr_Clear()
            future.add_done_callback(self._wakeup, context=self._context)
            return False
        wakeup, context = self._wakeup, self._context  # held: the task may end this inbox
        result = PyObject_CallOneArg(wakeup, FINISHED)
        PyContext_Exit(context)
        if self._waiter is None:
            self._wakeup = self._context = None        # a task that does something else is not kept
        if result == NULL:
            reraise()                                  # KeyboardInterrupt or SystemExit: a task keeps all others
        take_reference(result)
        return True


@final
@freelist(64)
cdef class Recv:
    """One pending `recv()`: awaitable, and a coroutine for `create_task`, `wait_for`, `shield`, `gather`."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self._step()

    def send(self, value):
        return self._step()

    def throw(self, kind, value=None, traceback=None):
        self._give_up()
        throw(kind, value, traceback)

    def close(self):
        self._give_up()

    cdef object _step(self):
        """Return the future the task is to wait for; or raise StopIteration with the item, or what ended the inbox."""
        cdef PyObject* result = recv_iternext(<PyObject*>self)
        if result == NULL:
            if PyErr_Occurred() == NULL:
                raise StopIteration
            reraise()
        return take_reference(result)

    cdef object _wait(self):
        """Become the waiting receiver; the end of the inbox and a misuse raise."""
        cdef Inbox inbox = self._inbox
        if self._spent:
            raise RuntimeError("this recv() has already been awaited")
        if inbox._waiter is not None and inbox._waiter is not self:
            if inbox._future is None or not inbox._future.cancelled():
                self._spent = True
                raise _concurrent_recv("another task is already waiting in recv() on this connection")
            inbox._waiter._give_up()                   # it is about to be told
            if inbox._queue.size:
                return self._step()
        if inbox._end is not None:
            self._detach()
            if inbox._end is not True:
                raise inbox._end.with_traceback(None)
            if self._iterating:
                raise StopAsyncIteration
            raise StopIteration
        empty_stop()
        if inbox._future is None or not FUTURES_SERVE_AGAIN:
            inbox._future = Future(loop=inbox._loop)
        inbox._future._asyncio_future_blocking = True
        inbox._waiter = self
        inbox._woken = False
        return inbox._future

    cdef void _detach(self) noexcept:
        self._spent = True
        if self._inbox._waiter is self:
            self._inbox._waiter = None

    cdef void _give_up(self) noexcept:
        """Leave without an item; the future, which may be cancelled, serves no more."""
        if self._inbox._waiter is self:
            self._inbox._future = None
        self._detach()


cdef PyObject* recv_iternext(PyObject* self) noexcept:
    """The `tp_iternext` of Recv: `Recv.__next__` without the traceback that Cython adds to the StopIteration.

    That traceback, of no use to anyone, costs more than all the rest of a `recv()` that finds an item. So nothing on
    the common path raises in Cython's sense, and there is no `try` on it.
    """
    cdef Recv recv = <Recv>self
    cdef Inbox inbox = recv._inbox
    cdef object item
    if inbox._queue.size and not recv._spent and (inbox._waiter is None or inbox._waiter is recv):
        recv._detach()
        item = inbox._queue.pop()
        inbox.taken(item)
        stop_with(item)
        return NULL
    return recv_wait(recv)


cdef PyObject* recv_wait(Recv recv) noexcept:
    cdef object future
    try:
        future = recv._wait()
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return NULL
    Py_INCREF(future)                                  # the caller's
    return <PyObject*>future


set_iternext(Recv, recv_iternext)


cdef inline object take_reference(PyObject* owned):
    cdef object result = <object>owned
    Py_DECREF(result)
    return result


cdef object throw(object kind, object value, object traceback):
    """Raise as `generator.throw(kind, value, traceback)` does."""
    if value is None:
        value = kind if isinstance(kind, BaseException) else kind()
    elif not isinstance(value, BaseException):
        value = kind(value)
    raise value if traceback is None else value.with_traceback(traceback)


@final
cdef class Done:
    """An awaitable that is already done: what `send()` returns when everything was written at once."""

    def __await__(self):
        return EXHAUSTED

    def send(self, value):
        raise StopIteration

    def throw(self, kind, value=None, traceback=None):
        throw(kind, value, traceback)

    def close(self):
        pass


cdef Done DONE = Done()
