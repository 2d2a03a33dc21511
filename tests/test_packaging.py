"""What is shipped: one version, types and layouts of all compiled modules, the right transport."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import fabric
import fabric_ext

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPILED = sorted(path.stem for path in ROOT.glob("fabric_ext/*.pyx"))


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fabric._version.VERSION"}
    written = re.compile(rf"""=\s*["']{re.escape(fabric.VERSION)}["']""")
    places = [*ROOT.glob("fabric*/**/*.py*"), ROOT / "setup.py", ROOT / "pyproject.toml"]
    found = [path.name for path in places if path.suffix != ".pyc" and written.search(path.read_text())]
    assert found == ["_version.py"]


def test_the_installed_version_is_the_source_version() -> None:
    try:
        installed = importlib.metadata.version("websocket-fabric")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fabric runs from its source tree, without being installed")
    assert installed == fabric.VERSION


def test_the_changelog_knows_the_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in {"Unreleased", fabric.VERSION}


@pytest.mark.parametrize("module", COMPILED)
@pytest.mark.parametrize("suffix", [".pyi", ".pxd"])
def test_each_compiled_module_has_types_and_layout(module: str, suffix: str) -> None:
    assert (ROOT / "fabric_ext" / module).with_suffix(suffix).exists()


@pytest.mark.parametrize("package", [fabric, fabric_ext])
def test_the_packages_are_typed(package: object) -> None:
    assert Path(str(package.__file__)).with_name("py.typed").exists()  # type: ignore[attr-defined]
    name = package.__name__  # type: ignore[attr-defined]
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][name]


def test_picows_is_pinned_to_one_minor_everywhere() -> None:
    pinned = f"picows~={fabric_ext.PICOWS_MINOR}."
    for requirements in (PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"]):
        assert any(line.startswith(pinned) for line in requirements)


@pytest.mark.parametrize("found", ["2.4.0", "2.2.9", "3.0", "2.30.1"])
@pytest.mark.parametrize(
    "pretend",
    [
        "import picows; picows.__version__ = {!r}",
        "import sys, types; sys.modules['picows.version'] = types.SimpleNamespace(__version__={!r})",
    ],
    ids=["imported before", "not imported"],
)
def test_another_picows_is_refused_in_one_sentence(pretend: str, found: str) -> None:
    program = f"{pretend.format(found)}; import fabric_ext.counters"
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    minor = fabric_ext.PICOWS_MINOR
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: fabric was compiled against picows {minor} and cannot run on picows {found}; "
        f"install it with: pip install 'picows~={minor}.1'"
    )


def test_a_picows_that_cannot_be_executed_says_why_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader(importlib.abc.Loader):
        is_broken = True

        def exec_module(self, module: types.ModuleType) -> None:
            if self.is_broken:
                raise ImportError("no python-socks")
            vars(module)["name"] = "found"
            assert module.name == "found"
            assert not hasattr(module, "other")  # while it is executed it is not executed again

    spec = importlib.machinery.ModuleSpec("picows", Loader())
    monkeypatch.setitem(sys.modules, "picows", sys.modules["picows"])  # put back at the end
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    fabric_ext._put_off_picows()
    package = sys.modules["picows"]
    for _ in range(2):
        with pytest.raises(ImportError, match="no python-socks"):
            package.name  # noqa: B018
    monkeypatch.setattr(Loader, "is_broken", False)
    assert package.name == "found"
    with pytest.raises(AttributeError, match="module 'picows' has no attribute 'other'"):
        package.other  # noqa: B018


def test_the_command_exists() -> None:
    module, _, function = PROJECT["project"]["scripts"]["fabric"].partition(":")
    program = f"import sys, {module} as m; sys.exit(not callable(m.{function}))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


REPOSITORY = "https://git.example/fabric"


def shown_description(repository: str | None = PROJECT["project"].get("urls", {}).get("Source")) -> str:
    """The README as package indexes get it."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    program = f"import runpy; print(runpy.run_path('setup.py', run_name='setup')['description']({repository!r}))"
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    return run.stdout


def shown_links(repository: str | None) -> list[str]:
    """Where the links and pictures of the description lead to."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", shown_description(repository), flags=re.S)
    return [match[1] or match[2] for match in re.finditer(r'\]\(([^)\s]+)\)|(?:src|href|srcset)="([^"]+)"', text)]


def test_the_description_has_absolute_links() -> None:
    links = shown_links(REPOSITORY)
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    files = f"{REPOSITORY}/blob/main/"
    assert f"{files}docs/images/dashboard.png?raw=true" in links
    inside = [link.removeprefix(files).partition("#")[0].partition("?")[0] for link in links if link.startswith(files)]
    assert [path for path in inside if not (ROOT / path).exists()] == []


def test_the_description_links_to_no_files_while_they_have_no_address() -> None:
    links = shown_links(None)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    text = shown_description(None)
    assert "\nTutorial · User guide ·" in text
    assert not re.search(r"<img|!\[", text)


def test_the_description_can_be_shown() -> None:
    markdown = pytest.importorskip("readme_renderer.markdown")
    html = markdown.render(shown_description())
    assert html is not None
    assert "<picture" not in shown_description()
    assert "&lt;img" not in html
