"""Runs the Autobahn suite's wstest under Python 2.7, bound to loopback, with a line on stdout for each result.

    python2.7 fuzzer27.py PACKAGES cases                 prints the ids of all cases, as JSON
    python2.7 fuzzer27.py PACKAGES fuzzingclient SPEC    tests the server that SPEC names
    python2.7 fuzzer27.py PACKAGES fuzzingserver SPEC    tests the clients that come

PACKAGES is the folder that the suite was installed into. It writes no report: `suite.py` reads the lines.
"""

from __future__ import print_function

import json
import os
import site
import sys

packages, mode = sys.argv[1:3]
site.addsitedir(packages)  # not only the path: zope's namespace package comes with a .pth file

import autobahntestsuite  # noqa: E402, F401  (first, since it chooses twisted's reactor)
from autobahntestsuite import case, caseset, fuzzing, wstest  # noqa: E402
from twisted.internet import reactor, task  # noqa: E402


def say(kind, *values):
    print(kind, json.dumps(values))
    sys.stdout.flush()


if mode == "cases":
    known = caseset.CaseSet(
        case.CaseSetname, case.CaseBasename, case.Cases, case.CaseCategories, case.CaseSubCategories
    )
    print(json.dumps(sorted(known.CasesById, key=known.caseIdtoIdTuple)))
    sys.exit()

listen = reactor.listenTCP


def listen_on_loopback(port, factory, backlog=50, interface=""):
    listening = listen(port, factory, backlog, "127.0.0.1")
    say("LISTENING", listening.getHost().port)
    return listening


def log_case(self, result):
    say("RESULT", result["id"], result["behavior"], result["behaviorClose"])


def end_with_parent(parent=os.getppid()):
    if os.getppid() != parent:
        reactor.stop()


reactor.listenTCP = listen_on_loopback
fuzzing.FuzzingFactory.logCase = log_case
fuzzing.FuzzingFactory.createReports = lambda self, *_: None
task.LoopingCall(end_with_parent).start(1, now=False)
sys.argv[:] = ["wstest", "-m", mode, "-s", sys.argv[3], "-u", "0"]
wstest.run()
