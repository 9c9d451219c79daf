# Sourced by the scripts: makes `python` and `deepspeed` ready, and reads their arguments.
#
# Where torch, deepspeed and the rest import, that Python is used. Otherwise .venv is made from
# requirements.txt, once. REQUIREMENTS and MODULES may name another list (tests/run.sh does).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
REQUIREMENTS="${REQUIREMENTS:-requirements.txt}"
MODULES="${MODULES:-torch deepspeed transformers datasets accelerate peft tensorboard matplotlib rich psutil scipy yaml filelock}"

has_packages() {  # looks the packages up without importing them
    "$1" -c "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" \
        $MODULES >/dev/null 2>&1
}

if ! has_packages python; then
    if ! has_packages "$ROOT/.venv/bin/python"; then
        echo "Installing $REQUIREMENTS into $ROOT/.venv (once, a few minutes) ..."
        [ -x "$ROOT/.venv/bin/python" ] || python3 -m venv "$ROOT/.venv"
        "$ROOT/.venv/bin/python" -m pip install --quiet -r "$ROOT/$REQUIREMENTS"
    fi
    export PATH="$ROOT/.venv/bin:$PATH"
fi

# read_arguments DEFAULT_OUTPUT DEFAULT_ZERO_STAGE "$@": sets OUTPUT, ZERO_STAGE and, to the rest, FLAGS
read_arguments() {
    OUTPUT="$1" ZERO_STAGE="$2"
    shift 2
    if [ $# -gt 0 ] && [[ "$1" != -* ]]; then OUTPUT="$1"; shift; fi
    if [ $# -gt 0 ] && [[ "$1" != -* ]]; then ZERO_STAGE="$1"; shift; fi
    FLAGS=("$@")
    mkdir -p "$OUTPUT"
}
