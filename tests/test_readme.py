"""Every command and every code block of the README."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from zennit_attn import cli

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "shell" for line in text.strip().splitlines()]
COMMANDS = [part.strip() for line in LINES for part in line.split("&&")]


def test_python_blocks_run_one_after_the_other(tmp_path):
    code = "\n".join(text for kind, text in BLOCKS if kind == "python")
    assert code.count("import") > 5
    script = tmp_path / "readme.py"
    # files that the README writes go to the temporary folder
    for name in ("mine.toml", "heatmap.html"):
        code = code.replace(f'"{name}"', repr(str(tmp_path / name)))
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "keys" in done.stdout
    assert "patch_embedding" in done.stdout
    # what the README shows of it; the numbers themselves may differ in their last digits
    printed = [line.split() for line in done.stdout.splitlines()]
    for kind, text in BLOCKS:
        for line in text.splitlines() if kind == "text" else ():
            *names, _, share = line.split()
            assert any(got[:-2] == names and got[-1] == share for got in printed), line


def test_toml_blocks_are_composites(tmp_path):
    from zennit_attn import load_composite

    texts = [text for kind, text in BLOCKS if kind == "toml"]
    assert texts
    for number, text in enumerate(texts):
        tomllib.loads(text)
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        load_composite(file)


def test_the_main_job(tmp_path):
    (command,) = [command for command in COMMANDS if "quickstart.py" in command]
    program, script, *options = shlex.split(command)
    assert program == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / script, *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "keys" in done.stdout
    assert "conserved" in done.stdout
    assert (tmp_path / "quickstart.png").stat().st_size > 50_000


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("zennit-attn")])
def test_the_command_line(command, tmp_path, monkeypatch, capsys):
    arguments = [part.replace("examples/", f"{ROOT}/examples/") for part in shlex.split(command)[1:]]
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 0
    assert "--out" not in command or (tmp_path / "heatmap.html").stat().st_size > 1000
    assert capsys.readouterr().out


OTHERS = [command for command in COMMANDS if "quickstart.py" not in command and not command.startswith("zennit-attn")]


@pytest.mark.parametrize("command", OTHERS)
def test_continuous_integration_runs_the_other_commands(command):
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    # the first installs for the main job, the others for the tests
    assert command in lines or command == 'python -m pip install -e ".[examples]"'


def test_no_figure_is_left_to_fill_in():
    assert not re.findall(r"[A-Z]+_[A-Z_]+", re.sub(r"`[^`]*`", "", (ROOT / "README.md").read_text()))


def test_there_are_no_other_kinds_of_blocks():
    assert {kind for kind, _ in BLOCKS} == {"shell", "python", "toml", "text"}


@pytest.mark.parametrize("command", re.findall(r"`python (examples/[^`]*)`", (ROOT / "docs/examples.md").read_text()))
def test_commands_of_the_examples_name_what_there_is(command):
    script, *options = shlex.split(command)
    assert (ROOT / script).exists()
    assert (ROOT / options[options.index("--out") + 1]).exists()


@pytest.mark.parametrize("page", ["rules.md"])
def test_python_blocks_of_the_pages_run(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
