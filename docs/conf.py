"""Sphinx: Markdown pages and an API reference from docstrings. `make docs` builds it; warnings are errors."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fabric import VERSION  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "fabric"
author = "the fabric contributors"
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's own underlines the names of modules, as if they were links
html_title = f"fabric {VERSION}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3

default_role = "code"  # docstrings are plain text with `code`, as a reader of the source sees them
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = [
    "config.cache",  # functions in this file
    "ref.python",  # names of fields in docstrings, which several classes have
]

hidden: dict[str, list[str]] = {}
SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", use_stub_docstring, priority=100)
    app.connect("autodoc-process-docstring", mark_up, priority=200)
    app.connect("autodoc-process-docstring", hide, priority=300)
    app.connect("autodoc-process-docstring", show, priority=900)
    app.connect("autodoc-process-signature", use_stub_signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("html-page-context", level_captions, priority=900)


def level_captions(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Give the captions of the navigation a level, which a heading needs for those who hear the page."""
    navigation = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')


# Compiled modules: types and docstrings stand in their .pyi files.


@functools.cache
def stubs(module: str) -> dict[str, ast.AST]:
    """The definitions in the stub of a compiled module, by dotted name."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".pyi")
    found: dict[str, ast.AST] = {}

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for index, node in enumerate(body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                # Of several overloads the last one carries the docstring.
                found[prefix + node.name] = node
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                following = body[index + 1 : index + 2]
                text = following and isinstance(following[0], ast.Expr) and following[0].value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[prefix + node.target.id] = text

    if path.exists():
        collect(ast.parse(path.read_text()).body, "")
    return found


def stub(name: str) -> ast.AST | None:
    """The stub's definition of `fabric_ext.module.Class.member`, or of what a class in `fabric` inherits."""
    parts = name.split(".")
    if parts[0] == "fabric_ext" and len(parts) > 2:
        return stubs(".".join(parts[:2])).get(".".join(parts[2:]))
    if len(parts) == 4 and (owner := getattr(sys.modules.get(".".join(parts[:2])), parts[2], None)):
        home = next((cls for cls in getattr(owner, "__mro__", ()) if parts[3] in vars(cls)), None)
        if home is not None and home.__module__.startswith("fabric_ext."):
            return stubs(home.__module__).get(f"{home.__name__}.{parts[3]}")
    return None


def use_stub_docstring(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Replace a compiled docstring, which repeats the signature, by that of the stub."""
    found = stub(name)
    if isinstance(found, ast.Constant):
        lines[:] = str(found.value).splitlines()
    elif isinstance(found, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(found)
        if text is not None:
            lines[:] = [*text.splitlines(), ""]
    if lines and re.fullmatch(r"[\w.]+\(.*\)( -> .*)?", lines[0]):  # what Cython's embedsignature adds
        del lines[: 2 if lines[1:2] == [""] else 1]


def use_stub_signature(
    _app: Sphinx,
    _what: str,
    name: str,
    _object: Any,
    _options: Any,
    signature: str | None,
    _returns: str | None,
) -> tuple[str, str | None] | None:
    """The typed signature of the stub for compiled functions, and for classes written as `Class()`."""
    found = None if signature is None else stub(name)
    if isinstance(found, ast.ClassDef):
        made = [node for node in found.body if getattr(node, "name", "") in {"__init__", "__new__"}]
        found = made[0] if made else None
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    arguments = re.sub(r"^(self|cls)(, /)?(, |$)", "", ast.unparse(found.args))
    is_class = found.name in {"__init__", "__new__"}
    return f"({arguments})", None if is_class or found.returns is None else ast.unparse(found.returns)


# Docstrings are plain text: what reStructuredText would take for markup is told apart here.


def mark_up(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Mark indented blocks outside the sections as literal, and escape what is not `code`."""
    marked: list[str] = []
    section = literal = False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            section, literal = line.rstrip(":") in SECTIONS and line.endswith(":"), False
        if indented and not section and not literal:
            if marked and marked[-1]:  # goes on with the line above
                marked.append(escape(line.strip()))
                continue
            marked += ["::", ""]
            literal = True
        marked.append(line if literal else escape(line))
    lines[:] = marked


def hide(_app: Sphinx, what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Keep docstrings of properties from napoleon, which takes what stands before a colon for their type."""
    if what in {"attribute", "property", "data"}:
        hidden[name] = lines[:]
        lines.clear()


def show(_app: Sphinx, _what: str, name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Undo `hide`, after napoleon."""
    lines[:0] = hidden.pop(name, [])


def escape(line: str) -> str:
    """Escape what stands outside `code`; let a letter follow it, as in `get`s."""
    parts = re.split(r"(`[^`]*`)", line)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"[*|]|(?<=\w)_(?=\W|$)", r"\\\g<0>", parts[index])
        if index and re.match(r"\w", parts[index]):
            parts[index] = "\\" + parts[index]
    return "".join(parts)


def skip(_app: Sphinx, _what: str, name: str, found: Any, skipped: bool, _options: Any) -> bool | None:
    """Leave out what subclasses inherit from builtins, and what is there for type checkers."""
    if name.startswith("_"):
        return True
    module = getattr(found, "__objclass__", None)
    return True if module in {object, tuple, str, int} else None
