"""What an awaitable written in C needs, in line.

Such a type is its own iterator. One C function is its step, an `am_send`: it gives PYGEN_NEXT with the future that the
task is to wait for, PYGEN_RETURN with the result, or PYGEN_ERROR with an exception set. `tp_iternext` is made of it.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from "Python.h":
    # Declared to fail always: the exception that is set goes on from here.
    void reraise "(void)PyErr_Occurred"() except *

    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT

cdef extern from *:
    """
    /* A StopIteration that only we hold, used again and again: code that awaits takes its value and lets it go at once. One
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

    /* Raise StopIteration(value); the reference to `value` is taken over. */
    static void fabric_stop_with(PyObject *value) {
        PyStopIterationObject *stop;
        PyObject *before;
        if (fabric_ready_stop() < 0) {
            Py_DECREF(value);
            return;
        }
        stop = (PyStopIterationObject *)fabric_spare_stop;
        before = stop->value;
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

    /* The `tp_iternext` that belongs to an `am_send`. NULL without an exception means that it is done, and gives None. */
    static PyObject *fabric_next(PyObject *self) {
        PyObject *result = NULL;
        if (fabric_ready_stop() < 0)       /* before a step that cannot be undone */
            return NULL;
        switch (Py_TYPE(self)->tp_as_async->am_send(self, Py_None, &result)) {
        case PYGEN_NEXT:
            return result;
        case PYGEN_RETURN:
            if (result == Py_None)
                Py_DECREF(result);
            else
                fabric_stop_with(result);
            return NULL;
        default:
            return NULL;
        }
    }

    static void fabric_set_send(PyObject *type, sendfunc send) {
        ((PyTypeObject *)type)->tp_as_async->am_send = send;
        ((PyTypeObject *)type)->tp_iternext = fabric_next;
    }
    """
    ctypedef PySendResult (*sendfunc)(PyObject*, PyObject*, PyObject**) noexcept
    # Make `send` the step of a type. CPython 3.11 awaits by it, without an exception that carries the result; later ones by
    # the `tp_iternext`. That of Cython adds a traceback to each StopIteration, which costs more than all the rest.
    void set_send "fabric_set_send"(object type, sendfunc send)
    PyObject* next_of "fabric_next"(PyObject* self) except? NULL
    void empty_stop "fabric_empty_stop"() noexcept


cdef inline object take_reference(PyObject* owned):
    """The object of a reference that is ours."""
    cdef object result = <object>owned
    Py_DECREF(result)
    return result


cdef inline object step(object awaitable):
    """One step of such an awaitable, as `next(awaitable)` does it."""
    cdef PyObject* result = next_of(<PyObject*>awaitable)
    if result == NULL:
        raise StopIteration
    return take_reference(result)


cdef inline object throw(object kind, object value, object traceback):
    """Raise as `generator.throw(kind, value, traceback)` does."""
    if value is None:
        value = kind if isinstance(kind, BaseException) else kind()
    elif not isinstance(value, BaseException):
        value = kind(value)
    raise value if traceback is None else value.with_traceback(traceback)
