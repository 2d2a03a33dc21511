"""Who has subscribed to what, and the way of a published message to them.

A topic is a name of tokens with dots between them: "room.7". A pattern is one that has `*` for any one token, or `>` for
one or more at its end, as in NATS. Names are found by hash; patterns stand in a tree, which is looked at only while it
has any. A message goes to each subscriber once, however many of its subscriptions fit.

Topics and subscribers point at each other by arrays, so that a subscription costs some 30 bytes, and ends in constant
time once it is found. What is published is only noted (see fabric_ext.writer): nothing of the application runs while
subscribers are gone through, so whatever it does when they are written to may subscribe, unsubscribe and close.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_GET_LENGTH
cimport cython
from cython cimport final
from libc.stdint cimport uint32_t

from fabric_ext.broadcast cimport Shared
from fabric_ext.connection cimport Connection
from fabric_ext.protocol cimport OPEN
from fabric_ext.session cimport Session
from fabric_ext.writer cimport LoopWriter

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    str PyUnicode_FromObject(object text)
    bint Py_UNICODE_ISSPACE(Py_UCS4 c) noexcept

cdef enum:
    LONGEST = 255                # bytes of a name
    MOST_TOKENS = 32


cdef inline int push(Entries* entries, PyObject* other, uint32_t place) except -1:
    cdef uint32_t capacity
    cdef void* grown
    if entries.count == entries.capacity:
        capacity = max(entries.capacity + entries.capacity // 2, 2)
        grown = PyMem_Realloc(entries.at, capacity * sizeof(Entry))
        if grown == NULL:
            raise MemoryError("cannot remember a subscription")
        entries.at, entries.capacity = <Entry*>grown, capacity
    entries.at[entries.count].other = other
    entries.at[entries.count].place = place
    entries.count += 1
    return 0


cdef inline Entries* entries_of_topic(PyObject* topic) noexcept:
    return &(<Topic>topic).entries


cdef inline Entries* entries_of_subscriber(PyObject* subscriber) noexcept:
    return &(<Subscriber>subscriber).entries


def check_topic(name, bint pattern=False):
    """Is `name` the name of a topic, or, with `pattern`, one or a pattern?

    Raises:
        TypeError: it is no str.
        ValueError: it is empty or longer than 255 bytes, has an empty token, more than 32, white space, control
            characters or a wildcard where none may be, or begins with `$`.
    """
    cdef Py_ssize_t size
    cdef list tokens
    cdef str token
    cdef Py_ssize_t i
    if not isinstance(name, str):
        raise TypeError(f"a topic is a str, not {type(name).__name__}")
    try:
        PyUnicode_AsUTF8AndSize(name, &size)
    except UnicodeEncodeError:
        raise ValueError("a topic has no lone surrogates") from None
    if size > LONGEST:
        raise ValueError(f"a topic has {LONGEST} bytes at most, not {size}")
    for c in <str>name:
        if c < u' ' or c == 0x7F or Py_UNICODE_ISSPACE(c):
            raise ValueError(f"a topic has no white space or control characters: {name!r}")
    if name.startswith("$"):
        raise ValueError(f"topics that begin with $ are reserved: {name!r}")
    tokens = name.split(".")
    if len(tokens) > MOST_TOKENS:
        raise ValueError(f"a topic has {MOST_TOKENS} tokens at most, not {len(tokens)}")
    for i in range(len(tokens)):
        token = tokens[i]
        if not token:
            raise ValueError(f"a topic has no empty token: {name!r}")
        if "*" in token or ">" in token:
            if not pattern:
                raise ValueError(f"a topic is needed here, not a pattern with wildcards: {name!r}")
            if PyUnicode_GET_LENGTH(token) > 1 or (token == ">" and i + 1 < len(tokens)):
                raise ValueError(f"a wildcard is a whole token, and > the last one: {name!r}")


def exact(name):
    """The same text as a str and nothing more, of what may be a subclass, such as a member of an enumeration."""
    return PyUnicode_FromObject(name) if isinstance(name, str) else name


cdef inline bint is_pattern(str name) noexcept:
    return "*" in name or ">" in name


@final
@cython.no_gc                                      # it owns nothing but text, so it is never part of a cycle
cdef class Topic:
    """A name or a pattern, and its subscribers."""

    def __dealloc__(self):
        PyMem_Free(self.entries.at)


@final
cdef class Subscriber:
    """A connection, or something else, that has subscriptions."""

    def __init__(self, target):
        if self.target is not None:
            raise TypeError("a Subscriber is made once")
        self.target = target
        self.is_connection = isinstance(target, Connection)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.entries.count):        # left by its owner without leave()
            drop_entry(entries_of_topic(self.entries.at[i].other), self.entries.at[i].place, True)
            Py_DECREF(<object>self.entries.at[i].other)
        PyMem_Free(self.entries.at)

    def __len__(self):
        return self.entries.count

    @property
    def topics(self):
        """Names and patterns, in no order."""
        return [(<Topic>self.entries.at[i].other).name for i in range(self.entries.count)]


cdef void drop_entry(Entries* entries, uint32_t place, bint of_topic) noexcept:
    """Take out an entry; the last one moves into its place, which the other side hears."""
    cdef Entry last
    entries.count -= 1
    if place == entries.count:
        return
    last = entries.at[entries.count]
    entries.at[place] = last
    if of_topic:
        entries_of_subscriber(last.other).at[last.place].place = place
    else:
        entries_of_topic(last.other).at[last.place].place = place


@final
cdef class Branch:
    """The patterns that begin with the same tokens."""

    def __cinit__(self):
        self.branches = {}


cdef int fitting(Branch branch, list tokens, Py_ssize_t i, list found) except -1:
    """Add the patterns below `branch` that fit the tokens from `i` on."""
    cdef Branch below
    if i == len(tokens):
        if branch.ends is not None:
            found.append(branch.ends)
        return 0
    if branch.rest is not None:
        found.append(branch.rest)
    below = branch.branches.get(tokens[i])
    if below is not None:
        fitting(below, tokens, i + 1, found)
    below = branch.branches.get("*")
    if below is not None:
        fitting(below, tokens, i + 1, found)
    return 0


cdef bint prune(Branch branch, list tokens, Py_ssize_t i) except -1:
    """Take a pattern out from under `branch`; is nothing left there?"""
    cdef Branch below
    if i == len(tokens):
        branch.ends = None
    elif tokens[i] == ">":
        branch.rest = None
    else:
        below = branch.branches[tokens[i]]
        if prune(below, tokens, i + 1):
            del branch.branches[tokens[i]]
    return not branch.branches and branch.ends is None and branch.rest is None


cdef Connection first_writable(list topics):
    """A connection among the subscribers that can be written to now, or None."""
    cdef Topic topic
    cdef Subscriber subscriber
    cdef uint32_t i
    for topic in topics:
        for i in range(topic.entries.count):
            subscriber = <Subscriber>topic.entries.at[i].other
            if subscriber.is_connection and (<Connection>subscriber.target)._sendable:
                return <Connection>subscriber.target
    return None


@final
cdef class Index:
    """The topics of one event loop and their subscribers."""

    def __cinit__(self):
        self._topics = {}
        self._root = Branch()

    def __len__(self):
        return len(self._topics)

    def __contains__(self, name):
        return name in self._topics

    def names(self):
        """The topics and patterns that have subscribers."""
        return list(self._topics)

    def count(self, str name not None):
        """The subscribers of exactly this topic or pattern."""
        cdef Topic topic = self._topics.get(name)
        return 0 if topic is None else topic.entries.count

    # ------------------------------------------------------------------ subscriptions

    def subscribe(self, Subscriber subscriber not None, name):
        """Return True if it is the first subscriber of this topic or pattern, None if it has subscribed already."""
        cdef Topic topic = self._topics.get(name)
        cdef list tokens = None, branches = None
        cdef bint is_new
        if topic is None:
            check_topic(name, True)
            if is_pattern(name):
                tokens = name.split(".")
                branches = [Branch() for _ in tokens]
            # Making those may have run the collector, and that a finalizer which has subscribed to the same. From here
            # on nothing is made that the collector counts, so the index changes as a whole.
            topic = self._topics.get(name)
        is_new = topic is None
        if is_new:
            topic = Topic.__new__(Topic)
            topic.name, topic.tokens = name, tokens
        elif self.place_of(subscriber, topic) >= 0:
            return None
        push(&topic.entries, <PyObject*>subscriber, subscriber.entries.count)
        try:
            push(&subscriber.entries, <PyObject*>topic, topic.entries.count - 1)
        except MemoryError:
            topic.entries.count -= 1
            raise
        Py_INCREF(topic)                           # held by the subscriber's entry
        self.subscriptions += 1
        if is_new:
            self._topics[name] = topic             # the one that owns it
            if tokens is not None:
                self.add_pattern(topic, branches)
        return topic.entries.count == 1

    cdef Py_ssize_t place_of(self, Subscriber subscriber, Topic topic) except -2:
        """Where the subscriber has its entry for the topic; -1: it has none. The shorter array is searched."""
        cdef uint32_t i
        if subscriber.entries.count <= topic.entries.count:
            for i in range(subscriber.entries.count):
                if subscriber.entries.at[i].other == <PyObject*>topic:
                    return i
        else:
            for i in range(topic.entries.count):
                if topic.entries.at[i].other == <PyObject*>subscriber:
                    return topic.entries.at[i].place
        return -1

    cdef int add_pattern(self, Topic topic, list branches) except -1:
        """Put a pattern into the tree; `branches` are as many as it may need."""
        cdef Branch branch = self._root, below
        self._patterns += 1
        for token in topic.tokens:
            if token == ">":
                branch.rest = topic
                return 0
            below = branch.branches.get(token)
            if below is None:
                below = branch.branches[token] = branches.pop()
            branch = below
        branch.ends = topic
        return 0

    def unsubscribe(self, Subscriber subscriber not None, name):
        """Return True if it was the last subscriber of this topic or pattern, None if it was none."""
        cdef Topic topic = self._topics.get(name)
        cdef Py_ssize_t place = -1 if topic is None else self.place_of(subscriber, topic)
        if place < 0:
            return None
        return self.separate(subscriber, place)

    def leave(self, Subscriber subscriber not None):
        """End all its subscriptions; return the topics and patterns that have no subscriber any more."""
        cdef list gone = []
        cdef str name
        while subscriber.entries.count:
            name = (<Topic>subscriber.entries.at[subscriber.entries.count - 1].other).name
            if self.separate(subscriber, subscriber.entries.count - 1):
                gone.append(name)
        PyMem_Free(subscriber.entries.at)
        subscriber.entries.at, subscriber.entries.capacity = NULL, 0
        return gone

    cdef bint separate(self, Subscriber subscriber, uint32_t place) except -1:
        """End a subscription; was it the topic's last one?"""
        cdef Topic topic = <Topic>subscriber.entries.at[place].other
        drop_entry(&topic.entries, subscriber.entries.at[place].place, True)
        drop_entry(&subscriber.entries, place, False)
        Py_DECREF(topic)                           # of that entry
        self.subscriptions -= 1
        if topic.entries.count:
            return False
        self.remove(topic)
        return True

    cdef int remove(self, Topic topic) except -1:
        if topic.tokens is not None:
            self._patterns -= 1
            prune(self._root, topic.tokens, 0)
        del self._topics[topic.name]
        return 0

    # ------------------------------------------------------------------ messages

    cdef list find(self, str name):
        """The topic and the patterns that a message published to `name` goes to."""
        cdef Topic topic = self._topics.get(name)
        cdef list found = [], tokens
        if topic is None or topic.tokens is not None:
            check_topic(name)
        else:
            found.append(topic)
        if self._patterns:
            tokens = name.split(".")
            fitting(self._root, tokens, 0, found)
        return found

    def subscribers(self, str name not None):
        """The targets of all that a message published to `name` goes to, each once."""
        cdef Topic topic
        cdef dict found = {}
        cdef uint32_t i
        for topic in self.find(name):
            for i in range(topic.entries.count):
                found[<Subscriber>topic.entries.at[i].other] = None
        return [(<Subscriber>subscriber).target for subscriber in found]

    def has_subscribers(self, name):
        """Does a message published to `name` go to any?"""
        cdef Topic topic
        if not isinstance(name, str):
            check_topic(name)                      # says what it is
        for topic in self.find(name):
            if topic.entries.count:
                return True
        return False

    def publish(self, name, Shared shared not None, exclude=()):
        """Send a message to those connections that take it now; return their number, and the targets that do not.

        Those are open connections that cannot be written to now or gather nothing, and whatever is no connection.

        Args:
            exclude: subscribers that do not get it.
        """
        cdef list rest = []
        if not isinstance(name, str):
            check_topic(name)                      # says what it is
        return self.offer(name, shared, exclude, rest), rest

    cdef Py_ssize_t offer(self, str name, Shared shared, object exclude, list rest) except -1:
        cdef Py_ssize_t sent = 0
        cdef LoopWriter writer = None
        cdef Subscriber subscriber
        cdef Connection peer
        cdef Session session
        cdef Topic topic
        cdef uint32_t i, item = 0
        cdef list found = self.find(name)
        if not found:
            return 0
        peer = first_writable(found)
        if peer is not None:
            peer.check_here()
            if peer._session is not None:
                writer = peer._session._loop_writer
                writer.add_item(shared, PyBytes_GET_SIZE(shared.plain))
                item = len(writer.fan_out.items) - 1
        self._published += 1
        for subscriber in exclude:
            subscriber.seen = self._published
        for topic in found:
            # Nothing below runs Python, so the arrays and the fan-out stay as they are.
            for i in range(topic.entries.count):
                subscriber = <Subscriber>topic.entries.at[i].other
                if subscriber.seen == self._published:
                    continue
                subscriber.seen = self._published
                if not subscriber.is_connection:
                    rest.append(subscriber.target)
                    continue
                peer = <Connection>subscriber.target
                session = peer._session
                if peer._sendable and not session._uncorked and session._loop_writer is writer:
                    session.count_sent(shared.size)
                    session.add_due(item)
                    sent += 1
                elif peer._state == OPEN:
                    rest.append(peer)
        return sent
