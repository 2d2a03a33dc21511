"""What an awaitable written in C needs, in line. Such a type is its own iterator, with a C function as `tp_iternext`."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from "Python.h":
    # Declared to fail always: the exception that is set goes on from here.
    void reraise "(void)PyErr_Occurred"() except *

cdef extern from *:
    """
    static inline void fabric_set_iternext(PyObject *type, iternextfunc next) {
        ((PyTypeObject *)type)->tp_iternext = next;
    }
    """
    ctypedef PyObject* (*iternextfunc)(PyObject*) noexcept
    # Python code reaches a method `__next__` through a wrapper that adds a traceback to each StopIteration. This does not.
    void set_iternext "fabric_set_iternext"(object type, iternextfunc next)


cdef inline object take_reference(PyObject* owned):
    """The object of a reference that is ours."""
    cdef object result = <object>owned
    Py_DECREF(result)
    return result


cdef inline object throw(object kind, object value, object traceback):
    """Raise as `generator.throw(kind, value, traceback)` does."""
    if value is None:
        value = kind if isinstance(kind, BaseException) else kind()
    elif not isinstance(value, BaseException):
        value = kind(value)
    raise value if traceback is None else value.with_traceback(traceback)
