"""CONTRIBUTING.md: what its recipes name is there; and what checks a commit."""

import re
import subprocess
from fnmatch import fnmatch
from importlib.metadata import packages_distributions

import pytest
import yaml

from tests.conftest import ROOT, TOO_LONG

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RUN = (ROOT / "tests" / "run.sh").read_text(encoding="utf-8")
# Lint, format, spelling, types: the commands between `cd` and the tests.
CHECKS = re.search(r'^cd "\$ROOT"\n(.*?)^#', RUN, re.DOTALL | re.MULTILINE)[1].splitlines()


def run_block(block: str) -> str:
    """What a piece of shell prints in the folder of the project."""
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TOO_LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_single_test_is_there():
    ((file, name),) = re.findall(r"^python -m pytest (\S+) -k (\w+)$", TEXT, re.MULTILINE)
    assert re.search(rf"^def test_\w*{name}", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("recipe", ["A data format", "A loss", "A model family"])
def test_names_of_a_recipe_are_there(recipe):
    """Names in capitals and functions stand in a file that the recipe names."""
    text = re.split(r"^### (.+)\n", TEXT, flags=re.MULTILINE)
    text = dict(zip(text[1::2], text[2::2], strict=True))[recipe]
    files = re.findall(r"`((?:utils|tests)/[\w/]+\.py)`", text)
    code = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    assert any(file.startswith("tests/") for file in files)
    for name in re.findall(r"`([A-Z]{4,}|[a-z]+_[a-z]+)`", text):
        assert re.search(rf"\b{name}\b", code), name


def requirements(name: str) -> set[str]:
    """The packages that a list of requirements and those in it pin, or give limits."""
    lines = (ROOT / name).read_text().split("\n")
    pinned = {re.split("==|>=", line)[0].lower() for line in lines if re.search("==|>=.*<", line)}
    included = [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    assert len(pinned) + len(included) == len([line for line in lines if line])
    return pinned.union(*map(requirements, included))


def test_the_test_command_installs_all_that_it_pins():
    modules = re.search(r'^MODULES="(.*?)"', RUN, re.DOTALL | re.MULTILINE)[1].split()
    owners = packages_distributions()
    assert {owners[module][0].lower() for module in modules} == requirements("requirements-dev.txt")


def test_hooks_are_the_checks_of_the_test_command():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    # Installed tools, called on all files: no version that could drift from the pinned one.
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)
    assert [hook["entry"] for hook in hooks] == CHECKS
    assert {check.split()[0] for check in CHECKS} <= requirements("requirements-dev.txt")


def test_workflow_runs_the_command_of_the_readme():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    workflow = yaml.load(text, yaml.BaseLoader)  # the safe one takes `on` for true
    assert workflow["on"] == ["push", "pull_request"]
    job = workflow["jobs"]["tests"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "bash tests/run.sh"
    assert f"\n{commands[-1]} " in (ROOT / "README.md").read_text(encoding="utf-8")
    torch, rest = commands[:-1]
    assert rest == "pip install -r requirements-dev.txt"
    pin = re.search(r"\$\(.*\)", torch)[0]
    assert re.fullmatch(r"torch>=[\d.]+,<[\d.]+\n", run_block(pin.strip("$()")))
    oldest = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert job["strategy"]["matrix"]["python"][0] == oldest


def test_dockerfile_names_what_there_is():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    sources = re.findall(r"^COPY (?:--\S+ )*(\S+) \S+$", text, re.MULTILINE)
    assert sources == ["requirements.txt", "."]
    assert "-r /tmp/requirements.txt" in text and "libaio-dev" in text
    (script,) = re.findall(r"^#.* bash (\S+\.sh)$", text, re.MULTILINE)
    assert (ROOT / script).is_file()
    (limit,) = re.findall(r"^torch>=.*<2\.(.*)$", (ROOT / "requirements.txt").read_text(), re.M)
    newest = f"2.{int(limit) - 1}"
    assert f"# The torch that requirements.txt brings, {newest}, is built for CUDA 13.0 " in text
    assert "FROM nvidia/cuda:13.0." in text
    folder = re.search(r"^WORKDIR (.*)$", text, re.MULTILINE)[1]
    assert f":{folder}/output" in text


def test_the_image_gets_nothing_that_git_ignores():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in (ROOT / ".gitignore").read_text().replace("\n/", "\n").split():
        assert any(fnmatch(name, pattern.removeprefix("**/")) for pattern in ignored), name
