"""Every command and every code block of the README, of CONTRIBUTING.md and of the pages of ``docs``.

The Python blocks of a page are one program, which runs in its own folder, beside ``examples`` and an empty ``docs``.
A block below ``<!-- not run: why -->`` is not run.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from PIL import Image

from zennit_attn import __version__, cli, load_composite
from zennit_attn.tuning import read_study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
#: What would take minutes is done a few times.
SHORTER = {"n_trials=20": "n_trials=2"}
CI = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
#: Kinds that are shown, or are of the site alone.
SHOWN = {"bibtex", "{eval-rst}", "{toctree}"}


class Block(NamedTuple):
    """A block of code."""

    page: str
    kind: str
    text: str
    reason: str | None


def blocks_of(path):
    page = path.relative_to(ROOT).as_posix()
    found = FENCE.finditer(path.read_text(encoding="utf-8"))
    return [Block(page, match["kind"], match["text"], match["reason"]) for match in found]


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
RUN = [block for block in BLOCKS if block.reason is None]
PROGRAMS = list(dict.fromkeys(block.page for block in RUN if block.kind == "python"))
COMMANDS = list(
    dict.fromkeys(
        (block.page, part.strip())
        for block in RUN
        if block.kind == "shell"
        for line in block.text.strip().splitlines()
        for part in line.split("&&")
    )
)
TITLES = [f"{page}: {command}" for page, command in COMMANDS]


@pytest.fixture
def folder(tmp_path):
    """A folder to write into, in which the examples are where the pages say."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(line):
    """Return what does not differ in its last digits: words, and shares in per cent."""
    return [word for word in line.split() if not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", word)]


def many_rows(page, folder, end=None):
    """Make and explain the rows that a page explains on the command line before it reads them, up to a command."""
    for there, command in COMMANDS:
        if there != page:
            continue
        if command == end:
            return
        arguments = shlex.split(command)[1:]
        if "--input" in command:
            with contextlib.chdir(folder):
                assert cli.main(arguments) == 0
        elif "shapes_folder.py" in command:
            run(arguments, folder)


@pytest.mark.parametrize("page", PROGRAMS)
def test_python_blocks_of_a_page_run_one_after_the_other(page, folder):
    blocks = [block for block in RUN if block.page == page]
    code = "\n".join(block.text for block in blocks if block.kind == "python")
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    many_rows(page, folder)
    (folder / "page.py").write_text(code, encoding="utf-8")
    printed = run(["page.py"], folder, PYTHONWARNINGS="error")
    # what stands below a program is what it prints
    said = [names(line) for line in printed.splitlines()]
    for above, below in pairwise(blocks):
        for line in below.text.splitlines() if (above.kind, below.kind) == ("python", "text") else ():
            assert names(line) in said, line
    # what it draws is what the page shows
    for made in (folder / "docs").glob("*.png"):
        assert f"]({made.name})" in (ROOT / page).read_text(encoding="utf-8")
        with Image.open(made) as drawn, Image.open(ROOT / "docs" / made.name) as shown:
            # versions of FreeType hint letters in their own way
            assert drawn.size == pytest.approx(shown.size, rel=0.02)
    if page == "README.md":
        assert "keys" in printed
        assert "patch_embedding" in printed
    if page == "docs/heatmaps.md":
        assert len(list((folder / "docs").glob("*.png"))) == 3


@pytest.mark.parametrize("block", [block for block in RUN if block.kind == "toml"], ids=lambda block: block.page)
def test_toml_blocks_are_composites_or_the_study_of_the_examples(block, folder):
    file = folder / "block.toml"
    file.write_text(block.text)
    content = tomllib.loads(block.text)
    if "search" in content:
        # files beside it are named by it
        example = tomllib.loads((ROOT / "examples" / "tune_shapes.toml").read_text(encoding="utf-8"))
        assert example.pop("model") == {**content.pop("model"), "device": "cpu"}
        assert example == content
        read_study(ROOT / "examples" / "tune_shapes.toml", allow_code=True)
    else:
        load_composite(file)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=TITLES)
def test_commands_run_here_or_in_continuous_integration(page, command, folder, monkeypatch, capsys):
    program, *arguments = shlex.split(command)
    if program == "zennit-attn":
        if arguments[0] in ("show", "virelay") or "shapes/model" in arguments:
            many_rows(page, folder, command)
            capsys.readouterr()
        monkeypatch.chdir(folder)
        assert cli.main(arguments) == 0
        if "--out" in command:
            made = folder / arguments[arguments.index("--out") + 1]
            wanted = "*.yaml" if arguments[0] == "virelay" else "part-*"
            assert len(list(made.glob(wanted))) if made.is_dir() else made.stat().st_size > 1000
        assert capsys.readouterr().out
    elif program == "python" and arguments[0].startswith("examples/"):
        printed = run(arguments, folder)
        made = folder / arguments[arguments.index("--out") + 1]
        assert sum(file.stat().st_size for file in (made, *made.rglob("*"))) > 50_000
        assert "quickstart.py" not in command or ("keys" in printed and "conserved" in printed)
    else:
        # the first is a part of the extra "tests"
        assert command in CI or command == 'python -m pip install -e ".[examples]"'


def test_the_readme_has_the_main_job():
    assert sum("quickstart.py" in command for page, command in COMMANDS if page == "README.md") == 1


def test_there_are_no_other_kinds_of_blocks():
    assert {block.kind for block in BLOCKS} == {"shell", "python", "toml", "text", *SHOWN}
    fences = sum(path.read_text(encoding="utf-8").count("```") for path in PAGES)
    assert fences == 2 * len(BLOCKS)


def test_the_map_of_the_house_has_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [
        path for path in (ROOT / "zennit_attn").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    names = {path.name if path.suffix else f"{path.name}/" for path in rooms if not path.name.startswith("_")}
    assert {"engine/", "targets.py"} < names
    assert [name for name in sorted(names - {"version.py"}) if f"`{name}`" not in text] == []


def test_few_blocks_are_not_run():
    assert len([block for block in BLOCKS if block.reason is not None]) <= 4


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.reason and block.kind == "shell"], ids=str)
def test_commands_that_are_not_run_name_what_there_is(block):
    for line in block.text.strip().splitlines():
        scripts = [part for part in shlex.split(line, comments=True) if part.endswith(".py") or part.startswith("./")]
        assert scripts
        assert all((ROOT / script).exists() for script in scripts), line


def test_no_figure_is_left_to_fill_in():
    for path in PAGES[:2]:
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"[A-Z]+_[A-Z_]+", text)


@pytest.mark.parametrize("command", re.findall(r"`python (examples/[^`]*)`", (ROOT / "docs/examples.md").read_text()))
def test_commands_of_the_examples_name_what_there_is(command):
    script, *options = shlex.split(command)
    assert (ROOT / script).exists()
    assert (ROOT / options[options.index("--out") + 1]).exists()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", prose):
        assert (path.parent / target).exists(), target


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (entry,) = [block.text for block in BLOCKS if block.kind == "bibtex"]
    assert citation["version"] == __version__
    assert f"version = {{{__version__}}}" in entry
    assert citation["title"] in entry.replace("{", "").replace("}", "")
