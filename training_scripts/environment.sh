# Sourced by the scripts: makes `python` and `deepspeed` ready, reads their arguments, and trains.
#
# Where torch, deepspeed and the rest import, that Python is used. Otherwise .venv is made from
# requirements.txt, once. REQUIREMENTS and MODULES may name another list (tests/run.sh does).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
REQUIREMENTS="${REQUIREMENTS:-requirements.txt}"
MODULES="${MODULES:-torch deepspeed transformers datasets huggingface_hub accelerate peft tensorboard matplotlib tqdm rich psutil scipy yaml filelock fastapi uvicorn}"

has_packages() {  # looks the packages up without importing them
    "$1" -c "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" \
        $MODULES >/dev/null 2>&1
}

if ! has_packages python; then
    if ! has_packages "$ROOT/.venv/bin/python"; then
        echo "Installing $REQUIREMENTS into $ROOT/.venv (once, 2 GB or, with CUDA, more; a few minutes) ..."
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

# train LAUNCHER MODEL DATA FLAGS: main.py with a script's model, data (both may be overridden) and
# flags, then those of the command line, which win. What it prints goes to OUTPUT/training.log too;
# a signal ends main.py, not the log. LAUNCHER in the environment takes a script to another place:
# `LAUNCHER=over_ssh HOSTFILE=my_hosts bash training_scripts/opt/single_node/run_13b.sh`.
train() {
    local launcher="${LAUNCHER:-$1}" model="${MODEL:-$2}" data="${DATA:-$3}"
    shift 3
    "$launcher" "$ROOT/main.py" --model_name_or_path "$model" --data_path $data "$@" \
        --zero_stage "$ZERO_STAGE" --enable_tensorboard --output_dir "$OUTPUT" \
        ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 |
        { trap '' INT TERM; exec tee -a "$OUTPUT/${TRAINING_LOG:-training.log}"; }
}

# train_and_score MODEL DATA FLAGS: on a CPU, main.py with a script's model, data and flags, then
# rw_eval.py with what came out of it: its built-in prompts, and the test file of the data.
# DEMO is where the script has put what it wrote.
train_and_score() {
    local model="$1" data="$2"
    shift 2
    python "$ROOT/main.py" --model_name_or_path "$model" --data_path "$data" \
        --data_output_path "$DEMO/cache" "$@" \
        --zero_stage "$ZERO_STAGE" --seed "$SEED" --output_dir "$OUTPUT" --overwrite_output_dir \
        ${FLAGS[@]+"${FLAGS[@]}"}
    python "$ROOT/rw_eval.py" --model_name_or_path "$OUTPUT"
    python "$ROOT/rw_eval.py" --model_name_or_path "$OUTPUT" --data_path "$data" \
        --output_dir "$OUTPUT/evaluation" --overwrite_output_dir
    echo
    echo "The reward model is in      $OUTPUT"
    echo "Its curves are in           $OUTPUT/training_curves.png"
    echo "Its metrics are in          $OUTPUT/metrics.jsonl"
    echo "Report on unseen prompts    $OUTPUT/evaluation/report.md"
    echo "Model and data              $model, $data"
    echo "Score your own              $(command -v python) $ROOT/rw_eval.py --model_name_or_path $OUTPUT --prompt ... --response ..."
}

# The launchers. Each gets main.py and its flags behind.
MASTER_PORT="${MASTER_PORT:-29500}"
HOSTFILE="${HOSTFILE:-$ROOT/training_scripts/opt/multi_node/hostfile}"

one_gpu() {  # the first of CUDA_VISIBLE_DEVICES, which --num_gpus would ignore
    local gpu="${CUDA_VISIBLE_DEVICES:-}"
    local place=(--num_gpus 1)
    if [ -n "$gpu" ]; then place=(--include "localhost:${gpu%%,*}"); fi
    deepspeed "${place[@]}" --master_port "$MASTER_PORT" "$@"
}

all_gpus() {  # of this machine, or NUM_GPUS of them
    deepspeed ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} --master_port "$MASTER_PORT" "$@"
}

over_ssh() {  # all GPUs of the machines in HOSTFILE
    check_hostfile
    deepspeed --hostfile "$HOSTFILE" --master_port "$MASTER_PORT" "$@"
}

check_hostfile() {  # deepspeed would train on this machine alone
    [ -r "$HOSTFILE" ] || { echo "error: HOSTFILE is $HOSTFILE: no such file" >&2; exit 2; }
}

without_ssh() {  # this machine's part of the same: run_350m_no_ssh.sh
    check_hostfile
    deepspeed --hostfile "$HOSTFILE" --no_ssh --node_rank "$NODE_RANK" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
}

under_slurm() {  # a task for each GPU of the job, which a requeued job continues: run_350m_slurm.sh
    local ranks='RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"'
    export MASTER_ADDR MASTER_PORT
    srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$ranks" bash \
        python -u "$1" --resume_from_checkpoint latest --save_interval 200 --save_total_limit 2 \
        "${@:2}"
}
