#!/usr/bin/env bash
# Lint, types, spelling and tests, on any machine with Python 3.11 or newer: what is missing goes
# into .venv, once.
#
#   bash tests/run.sh [quick] [arguments of pytest]
#
# quick leaves out what starts processes, and what is slow without that.
set -euo pipefail
REQUIREMENTS=requirements-dev.txt
MODULES="torch deepspeed transformers datasets huggingface_hub accelerate peft tensorboard matplotlib tqdm rich psutil
    scipy yaml filelock fastapi uvicorn hypothesis pytest xdist ruff sklearn mypy codespell_lib"
source "$(dirname "${BASH_SOURCE[0]}")/../training_scripts/environment.sh"
cd "$ROOT"
ruff check .
ruff format --check .
codespell
mypy
# Two files at a time: most tests wait for a process that they have started.
if [ "${1:-}" = quick ]; then
    shift
    set -- -m "not launch and not slow" "$@"
fi
python -m pytest -n 2 --dist loadfile "$@"
