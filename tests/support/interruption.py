"""Interrupts Python code before any one of its bytecodes, as a signal handler may."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def interrupted(function: Callable[[], object], interrupt: Callable[[], object], at: int, *modules: ModuleType) -> bool:
    """Call `function`, and `interrupt` before the bytecode number `at` of `modules`; was it reached?"""
    files = {module.__file__ for module in modules}
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == at:
                interrupt()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count >= at
