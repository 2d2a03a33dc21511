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
from types import MethodDescriptorType

from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.dict cimport PyDict_Contains, PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cython cimport final, freelist, unlikely

from fabric_ext.awaitable cimport (PYGEN_ERROR, PYGEN_NEXT, PYGEN_RETURN, PySendResult, empty_stop, reraise, sendfunc,
                                   set_send, step, take_reference, throw)
from fabric_ext.ring cimport Ring

cdef extern from "Python.h":
    int PyContext_Enter(object context) noexcept
    int PyContext_Exit(object context) noexcept
    PyObject* PyObject_CallOneArg(object function, object argument) noexcept
    PyObject* Py_NewRef(object value) noexcept

cdef extern from *:
    """
    static void fabric_inherit_anext(PyObject *type, PyObject *base) {
        ((PyTypeObject *)type)->tp_as_async->am_anext = ((PyTypeObject *)base)->tp_as_async->am_anext;
    }

    /* future._asyncio_future_blocking = True: `attribute` is what the class has under that name. */
    static int fabric_set_blocking(PyObject *attribute, PyObject *future) {
        descrsetfunc set = Py_TYPE(attribute)->tp_descr_set;
        return set != NULL ? set(attribute, future, Py_True)
                           : PyObject_SetAttrString(future, "_asyncio_future_blocking", Py_True);
    }

    /* `method`, of a base, as a method of `type`. */
    static PyObject *fabric_own_method(PyObject *type, PyObject *method) {
        return PyDescr_NewMethod((PyTypeObject *)type, ((PyMethodDescrObject *)method)->d_method);
    }
    """
    void inherit_anext "fabric_inherit_anext"(object type, object base)
    int set_blocking "fabric_set_blocking"(object attribute, object future) except -1
    object own_method "fabric_own_method"(object type, object method)

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
    """Enough of a loop for a future, and for a task when the test calls what is due."""

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
cdef object remove_done_callback = Future.remove_done_callback
cdef object blocking = Future._asyncio_future_blocking

# From Python 3.14 on a future remembers the tasks that await it, each until its wakeup is called with that very future.
cdef object forget_awaiter = getattr(asyncio.futures, "future_discard_from_awaited_by", None)

# Whether a waiting task may be stepped in place at all: `_check_asyncio` finds out.
cdef bint STEPS = True


cdef object _concurrent_recv = RuntimeError


def bind_errors(*, concurrent_recv):
    """Set what is raised in a second task that calls `recv()` while another one waits: a class, called with a text."""
    global _concurrent_recv
    _concurrent_recv = concurrent_recv


def inherits_in_c(type cls not None):
    """Class decorator: let Python code call what a class inherits from a compiled one as if it were compiled itself.

    CPython calls a C method without detours for instances of the very type that has it, and looks the `__anext__` of a
    class made in Python up by name for each item.
    """
    for base in cls.__mro__[1:]:
        for name, method in vars(base).items():
            if type(method) is MethodDescriptorType and getattr(cls, name) is method and not name.startswith("__"):
                setattr(cls, name, own_method(cls, method))
    base = next((base for base in cls.__mro__ if "__anext__" in vars(base)), cls)
    if base is not cls:
        inherit_anext(cls, base)
    return cls


cdef class ReceiveQueue:
    """A queue with at most one waiting receiver.

    The part of a connection that receives; usable alone: `ReceiveQueue(loop)`, `_put(x)`, `await recv()`, `_finish(error)`.
    """

    def __cinit__(self, *args, **kwargs):
        self._items = Ring()

    def __init__(self, loop):
        self._loop = loop

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def recv(self):
        """Return an awaitable for the next item; it gives `None` after a normal end and raises after another one."""
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        return recv

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        recv._iterating = True
        return recv

    def _put(self, item):
        """Queue `item` and resume the waiting receiver, if there is one."""
        self.begin_delivery()
        self.put(item)

    def _finish(self, error=None):
        """No more items come: receivers get what is queued, then `None` (or `error`, raised)."""
        self.begin_delivery()
        self.finish(error)

    @property
    def queued(self):
        """Items received and not yet taken."""
        return self._items.size

    # What a subclass may refine.

    cdef PyObject* take(self) except? NULL:
        """Take the oldest item out, with its reference, where there is one; if this raises, it stays.

        What this brings about may run anything, another receiver too: NULL, if that has taken the last one.
        """
        return self._items.take()

    cdef object shaped(self, object item, int form):
        """What a receiver that asked for `form` gets for `item`; if this raises, the item is lost."""
        return item

    cdef int on_wait(self) except -1:
        """A receiver has found the queue empty, and waits."""
        return 0

    cdef int on_closed_loop(self) except -1:
        """The event loop was closed: no more items come."""
        return 0

    cdef object concurrent_recv(self):
        """The exception for a receiver that finds another one waiting."""
        return _concurrent_recv("another task is already waiting in recv() on this connection")

    cdef int displace(self) except -1:
        """Make way for another receiver: one whose wait was cancelled, and whose task has not run since, gives up.

        No other does: then this raises.
        """
        if self._future is None or not self._future.cancelled():
            raise self.concurrent_recv()
        self._waiter._give_up()
        return 0

    # What the frame callback calls.

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
        # A future that is done already has been cancelled: the cancellation of its task is scheduled.
        if not (self._may_step and self._step_in_place()) and not self._future.done():
            self._future.set_result(None)
            self._future = None
        return 0

    cdef bint _step_in_place(self) except -1:
        """Run the waiting task's wakeup in its context; False when it has to be scheduled."""
        cdef object future = self._future, callbacks
        cdef PyObject* result
        # Wakeups of the same task are equal, and a task has one context.
        if self._wakeup is None or not remove_done_callback(future, self._wakeup):
            callbacks = future._callbacks
            if callbacks is None or PyList_GET_SIZE(callbacks) != 1:
                return False
            self._wakeup, self._context = callbacks[0]
            remove_done_callback(future, self._wakeup)
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
        return step(self)

    def send(self, value):
        return step(self)

    def throw(self, kind, value=None, traceback=None):
        cdef ReceiveQueue queue = self._queue
        self._give_up()
        if queue is not None and queue._end is None and queue._loop.is_closed():
            # A task of another loop waited: asyncio refuses what belongs to this one.
            queue.on_closed_loop()
            if queue._end is not None:
                self._end()
                raise StopIteration
        throw(kind, value, traceback)

    def close(self):
        self._give_up()

    cdef object _wait(self):
        """Become the waiting receiver; return the future that the task is to wait for."""
        cdef ReceiveQueue queue = self._queue
        empty_stop()
        if queue._future is None:
            queue._future = Future(loop=queue._loop)
        set_blocking(blocking, queue._future)
        queue._waiter = self
        queue._woken = False
        queue.on_wait()
        return queue._future

    cdef int _end(self) except -1:
        """The queue has ended: raise what is to be raised for it."""
        cdef object end = self._queue._end
        self._detach()
        if end is not True and not (self._iterating and self._queue._quiet_end):
            raise fresh(end)
        if self._iterating:
            raise StopAsyncIteration
        return 0

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


cdef PySendResult recv_send(PyObject* self, PyObject* value, PyObject** result) except PYGEN_ERROR:
    """The `am_send` of Recv. Its common paths raise nothing: an exception costs more than all the rest of a `recv()`."""
    cdef Recv recv = <Recv>self
    cdef ReceiveQueue queue = recv._queue
    cdef object future, item
    if unlikely(queue is None):
        raise TypeError("a Recv is made by recv()")
    if unlikely(recv._spent):
        raise RuntimeError("this recv() has already been awaited")
    while True:
        if queue._waiter is not None and queue._waiter is not recv:
            recv._spent = True
            queue.displace()
            recv._spent = False
        if queue._items.size == 0:
            break
        result[0] = queue.take()
        if unlikely(result[0] == NULL):
            continue
        recv._detach()
        if recv._form:
            item = take_reference(result[0])
            result[0] = NULL
            item = queue.shaped(item, recv._form)
            result[0] = Py_NewRef(item)
        return PYGEN_RETURN
    if queue._end is not None:
        recv._end()
        result[0] = Py_NewRef(None)
        return PYGEN_RETURN
    future = recv._wait()
    result[0] = Py_NewRef(future)
    return PYGEN_NEXT


set_send(Recv, <sendfunc>recv_send)


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
            queue._put(number)
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
