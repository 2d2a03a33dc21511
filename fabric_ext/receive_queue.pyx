"""The receiving end of a connection: a queue, and a `recv()` that is resumed the moment something arrives.

Owns the queue of received items and the one task that may wait for them. Knows nothing of sockets or frames.

How a task is resumed. `await queue.recv()` yields a future, to which the task adds its wakeup as a callback. The future
is never finished: `put()` takes the callback back and calls it right there, inside the task's context, where asyncio
would have scheduled it for the next turn of the loop. No handle, no turn, and the same future serves the next wait.
That is allowed only while no other task runs on this thread (`_may_step`); otherwise the future is finished, as usual.
It leans on parts of asyncio that are not documented: `_steps_in_place` tries them when this module is imported, and where
they are different the future is always finished, and a warning says so.

Why nothing is lost. An item belongs to the queue until the step in which the task takes it and its `await` returns; a
cancelled, closed or collected `Recv` never holds one.
"""

import asyncio
import copy
import sys
import threading
import warnings

from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.dict cimport PyDict_Contains, PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cython cimport final, freelist

from fabric_ext.awaitable cimport iternextfunc, reraise, set_iternext, take_reference, throw
from fabric_ext.ring cimport Ring

cdef extern from "Python.h":
    int PyContext_Enter(object context) noexcept
    int PyContext_Exit(object context) noexcept
    PyObject* PyObject_CallOneArg(object function, object argument) noexcept

cdef extern from *:
    """
    /* A class made in Python gets a slot that looks `__anext__` up by name for each item. */
    static void fabric_inherit_anext(PyObject *type, PyObject *base) {
        ((PyTypeObject *)type)->tp_as_async->am_anext = ((PyTypeObject *)base)->tp_as_async->am_anext;
    }

    /* A StopIteration that only we hold, used again and again: who awaits takes its value and lets it go at once. One
       that somebody kept, or that has been through Python code, is left to them. */
    static PyObject *fabric_spare_stop;

    /* Have one that can be used: -1 and an exception where there is no memory, or no room to call. */
    static int fabric_ready_stop(void) {
        PyStopIterationObject *stop = (PyStopIterationObject *)fabric_spare_stop;
        if (stop == NULL || Py_REFCNT(stop) != 1 || stop->traceback != NULL || stop->context != NULL) {
            PyObject *fresh = PyObject_CallNoArgs(PyExc_StopIteration);
            if (fresh == NULL)
                return -1;
            Py_XDECREF(fabric_spare_stop);
            fabric_spare_stop = fresh;
        }
        return 0;
    }

    static void fabric_stop_with(PyObject *value) {
        if (fabric_ready_stop() < 0)
            return;
        PyStopIterationObject *stop = (PyStopIterationObject *)fabric_spare_stop;
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
    void inherit_anext "fabric_inherit_anext"(object type, object base)
    int ready_stop "fabric_ready_stop"() except -1
    void stop_with "fabric_stop_with"(object value) noexcept       # raises StopIteration(value)
    void empty_stop "fabric_empty_stop"() noexcept

# The tasks that run, by loop: up to Python 3.13 of both kinds. From 3.14 on only those made in Python; which C task runs is
# known to its thread, and asyncio's own function tells.
cdef dict running = getattr(asyncio.tasks, "_current_tasks", {})
cdef object current_task = getattr(asyncio.tasks, "_c_current_task", None) if sys.version_info >= (3, 14) else None


cdef bint nobody_runs(object loop) except -1:
    """Does no task run on this thread, in this loop?"""
    if PyDict_Size(running) and PyDict_Contains(running, loop):
        return False
    return current_task is None or current_task(loop) is None


class _Loop:
    """Enough of a loop for a future, and for a task when somebody calls what is due."""

    def __init__(self):
        self.due = []

    def get_debug(self):
        return False

    def call_soon(self, callback, *arguments, context):
        self.due.append((context, callback, *arguments))


# A finished future. A task's wakeup asks the future it is given for an exception, by name unless it is asyncio's own:
# so it is given this one, whatever it waited for.
cdef object FINISHED = asyncio.Future(loop=_Loop())
FINISHED.set_result(None)

cdef object Future = asyncio.Future

# From Python 3.14 on a future remembers the tasks that await it, each until its wakeup is called with that very future.
cdef object forget_awaiter = getattr(asyncio.futures, "future_discard_from_awaited_by", None)

# Whether a waiting task may be stepped in place at all: `_check_asyncio` finds out.
cdef bint STEPS = True


cdef object _concurrent_recv = RuntimeError


def bind_errors(*, concurrent_recv):
    """Set what is raised in a second task that calls `recv()` while another one waits: a class, called with a text."""
    global _concurrent_recv
    _concurrent_recv = concurrent_recv


def iterates_in_c(type cls not None):
    """Class decorator: let `async for` over a Python subclass of `ReceiveQueue` call what it inherits without a look-up."""
    if cls.__anext__ is cls.__base__.__anext__:
        inherit_anext(cls, cls.__base__)
    return cls


cdef class ReceiveQueue:
    """A queue with at most one waiting receiver.

    The part of a connection that receives; usable alone: `ReceiveQueue(loop)`, `put_item(x)`, `await recv()`, `end(error)`.
    """

    def __cinit__(self, *args, **kwargs):
        self._items = Ring()

    def __init__(self, loop):
        self._loop = loop

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def recv(self):
        """Return an awaitable for the next item; it gives `None` after a normal end and raises after another one."""
        cdef Recv recv = Recv.__new__(Recv)
        recv._queue = self
        return recv

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Recv recv = Recv.__new__(Recv)
        recv._queue = self
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
        return self._items.size

    # What a subclass may refine.

    cdef int taken(self, object item) except -1:
        """`item` is about to leave the queue; if this raises, it stays."""
        return 0

    cdef object shaped(self, object item, int form):
        """What a receiver that asked for `form` gets for `item`; if this raises, the item is lost."""
        return item

    cdef int on_wait(self) except -1:
        """A receiver has found the queue empty, and waits."""
        return 0

    cdef object concurrent_recv(self):
        """The exception for a receiver that finds another one waiting."""
        return _concurrent_recv("another task is already waiting in recv() on this connection")

    # What the frame callback calls.

    cdef void begin_delivery(self) noexcept:
        """Items come now, maybe several: who runs on this thread is found out when the first of them finds a waiter."""
        self._knows_tasks = False

    cdef int put(self, object item) except -1:
        self._items.push(item)
        return self.hand_over()

    cdef int hand_over(self) except -1:
        """Resume the waiting receiver, if there is something for it."""
        if self._items.size and self._waiter is not None:
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
            self._may_step = STEPS and nobody_runs(self._loop)
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
        wakeup, context = self._wakeup, self._context  # held: the task may end this queue
        waiter = self._waiter
        if forget_awaiter is not None:
            forget_awaiter(future, getattr(wakeup, "__self__", None))
        result = PyObject_CallOneArg(wakeup, FINISHED)
        PyContext_Exit(context)
        if self._waiter is None:
            self._wakeup = self._context = None        # a task that does something else is not kept
        if result == NULL:
            if self._waiter is waiter and PyErr_ExceptionMatches(RuntimeError):
                # asyncio refused, and the task waits on: the loop does not run on this thread, or a task does that
                # `nobody_runs` does not know.
                PyErr_Clear()
                future.add_done_callback(wakeup, context=context)
                return False
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
        """Return the future the task is to wait for; or raise StopIteration with the item, or what ended the queue."""
        cdef PyObject* result = recv_iternext(<PyObject*>self)     # raises what it raises
        if result == NULL:
            raise StopIteration
        return take_reference(result)

    cdef object _wait(self):
        """Become the waiting receiver; the end of the queue and a misuse raise."""
        cdef ReceiveQueue queue = self._queue
        if queue is None:
            raise TypeError("a Recv is made by recv()")
        if self._spent:
            raise RuntimeError("this recv() has already been awaited")
        if queue._waiter is not None and queue._waiter is not self:
            if queue._future is None or not queue._future.cancelled():
                self._spent = True
                raise queue.concurrent_recv()
            queue._waiter._give_up()                   # it is about to be told
            if queue._items.size:
                return self._step()
        if queue._end is not None:
            self._detach()
            if queue._end is not True and not (self._iterating and queue._quiet_end):
                raise fresh(queue._end)
            if self._iterating:
                raise StopAsyncIteration
            raise StopIteration
        empty_stop()
        if queue._future is None:
            queue._future = Future(loop=queue._loop)
        queue._future._asyncio_future_blocking = True
        queue._waiter = self
        queue._woken = False
        queue.on_wait()
        return queue._future

    cdef void _detach(self) noexcept:
        self._spent = True
        if self._queue is not None and self._queue._waiter is self:
            self._queue._waiter = None

    cdef void _give_up(self) noexcept:
        """Leave without an item; the future, which may be cancelled, serves no more."""
        if self._queue is not None and self._queue._waiter is self:
            self._queue._future = None
        self._detach()


cpdef object fresh(error):
    """A copy to raise: one that was raised keeps a traceback, and with it the frames it went through."""
    try:
        other = copy.copy(error)
    except Exception:                                  # an exception whose class cannot be copied
        return error.with_traceback(None)
    other.__cause__ = error.__cause__
    return other


cdef PyObject* recv_iternext(PyObject* self) except? NULL:
    """The `tp_iternext` of Recv: `Recv.__next__` without the traceback that Cython adds to the StopIteration.

    That traceback, of no use to anyone, costs more than all the rest of a `recv()` that finds an item. So nothing on
    the common path raises in Cython's sense.
    """
    cdef Recv recv = <Recv>self
    cdef ReceiveQueue queue = recv._queue
    cdef object item, future
    if queue is not None and queue._items.size and not recv._spent and (queue._waiter is None or queue._waiter is recv):
        item = queue._items.peek()
        ready_stop()                                   # this and the next may raise: the item stays where it is
        queue.taken(item)
        recv._detach()
        queue._items.drop()
        if recv._form:
            item = queue.shaped(item, recv._form)
        stop_with(item)
        return NULL
    future = recv._wait()
    Py_INCREF(future)                                  # the caller's
    return <PyObject*>future


set_iternext(Recv, <iternextfunc>recv_iternext)


async def _receive(ReceiveQueue queue, list seen):
    for _ in range(3):
        item = await queue.recv()
        seen.append((item, nobody_runs(queue._loop)))


def _steps_in_place():
    """Whether a waiting task can be stepped in place: by doing it three times, for one task, in a loop that runs nothing.

    Relied on and not documented: `_callbacks` of a future, a wakeup that accepts another future than was waited for, that
    of the next wait being equal to it, the tables of `nobody_runs`, and a future that can be told to forget an awaiter.
    """
    cdef ReceiveQueue queue
    loop = _Loop()
    queue = ReceiveQueue(loop)
    seen = []
    asyncio._set_running_loop(loop)
    try:
        task = asyncio.Task(_receive(queue, seen), loop=loop)
        context, step = loop.due.pop()
        context.run(step)
        task._log_destroy_pending = False
        future = queue._future
        for number in range(3):
            if not nobody_runs(loop):
                return False
            queue.put_item(number)
            if seen != [(each, False) for each in range(number + 1)] or loop.due or queue._future is not future:
                return False
        return task.done() and not future._callbacks and not getattr(future, "_asyncio_awaited_by", None)
    finally:
        asyncio._set_running_loop(None)


def _check_asyncio():
    """Give up stepping tasks in place, with a warning, where asyncio is not as `_steps_in_place` expects."""
    global STEPS
    found = []

    def check():
        try:
            found.append(_steps_in_place())
        except Exception as error:
            found.append(error)

    # In a thread of its own: each has one running loop, and this one's may run the task that imports this module.
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    if found != [True]:
        STEPS = False
        warnings.warn(
            f"asyncio of Python {sys.version.split()[0]} is not as fabric expects ({found[0]!r}): a task that waits in "
            "recv() is resumed one turn of the event loop later",
            RuntimeWarning,
            stacklevel=2,
        )


_check_asyncio()
