"""The package as it is installed: from a wheel, and in place."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USE = """
import zennit_attn
from zennit.composites import COMPOSITES
from zennit_attn.composites.configuration import PRESETS, preset_file
for name in PRESETS:
    assert zennit_attn.load_composite(name) == PRESETS[name](), name
    print(preset_file(name))
assert set(PRESETS) <= set(COMPOSITES)
print(zennit_attn.__file__)
"""


def run(*command, **options):
    # a checkout on the path would look to pip like an installed package
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = {"env": environment, **options}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools packs what an earlier build has left there
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def use(tmp_path, *install):
    """Install into a fresh environment that finds the dependencies of this one, and use the package there."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *install)
    # an installation in place of this environment is not found through PYTHONPATH
    environment = {"PYTHONPATH": sysconfig.get_paths()["purelib"], "PATH": ""}
    return run(python, "-c", USE, cwd=tmp_path, env=environment).splitlines()


def test_the_wheel_holds_code_presets_and_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "zennit_attn").rglob("*.py")}
    assert {name for name in names if name.endswith((".py", ".typed"))} == {*modules, "zennit_attn/py.typed"}
    presets = {f"zennit_attn/presets/{file.name}" for file in (ROOT / "composites").glob("*.toml")}
    assert len(presets) == 5
    assert presets <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert "License-Expression: BSD-3-Clause" in metadata
    assert not any(name.startswith(("tests", "examples")) for name in names)


def test_presets_from_the_wheel(tmp_path, wheel):
    *presets, package = use(tmp_path, wheel)
    assert all("presets" in path and str(tmp_path) in path for path in presets)
    assert str(tmp_path) in package


def test_presets_from_an_installation_in_place(tmp_path):
    *presets, package = use(tmp_path, "-e", ROOT)
    assert all(Path(path).parent == ROOT / "composites" for path in presets)
    assert Path(package) == ROOT / "zennit_attn" / "__init__.py"
