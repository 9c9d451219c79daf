#!/usr/bin/env bash
# OPT-350m with each combination of ZeRO stage, offload and learning rate, one run after another, and
# one table of accuracy, speed and memory. SCRIPT may be another script of one GPU or one machine.
#
#   bash training_scripts/opt/single_node/sweep/run_sweep.sh [OUTPUT] [STAGES] [flags of main.py]
#   STAGES="1 2" RATES="1e-5 2e-5" bash ... output/sweep --max_steps 300 --eval_iters 20
#
# Each run has a folder of its own, OUTPUT/stage2-offload_no-lr1e-5, and training.log in it. Started
# again with the same words, the sweep passes over runs that are finished, takes up one that was
# stopped where it saved its state, and tries failed ones again. Ctrl-C stops run and sweep; for runs
# that may be killed without a signal, add --save_interval 200 --save_total_limit 1.
#
# Hardware: 1 to 8 GPUs with 16 GB each. NUM_GPUS=1 also runs on a CPU.
# Expect:   14 runs; OUTPUT/sweep.md and OUTPUT/sweep.csv, written anew after each of them. The exit
#           code is 1 if a run failed.
# Hyperparameters: those of SCRIPT (run_350m.sh of one machine) but for the rates: that one's, and a
#           fifth of it, which is our choice.
# Override: STAGES, OFFLOAD ("no cpu"; stage 0 has none), RATES, SCRIPT, MODEL, DATA (several,
#           separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../../../environment.sh"
read_arguments output/opt-350m-sweep "${STAGES:-0 1 2 3}" "$@"
OFFLOAD="${OFFLOAD:-no cpu}"
RATES="${RATES:-1e-5 5e-5}"
SCRIPT="${SCRIPT:-$HERE/../run_350m.sh}"

run_script() {  # RUN STAGE OFFLOAD RATE
    local run="$1" stage="$2" offload="$3" rate="$4"
    [ "$offload" != no ] || offload=""
    source "$SCRIPT" "$run" "$stage" --learning_rate "$rate" ${offload:+--offload "$offload"} \
        --overwrite_output_dir --resume_from_checkpoint latest ${FLAGS[@]+"${FLAGS[@]}"}
}

# A run is a process group of its own, and signals of the sweep are passed on to it. Its launcher ends
# before its processes have saved their state: a run is over when nothing writes to its log any more.
stop() {  # SIGNAL EXIT_CODE
    stopped="$2"
    [ -z "$job" ] || kill -s "$1" -- "-$job" 2>/dev/null || true
}
stopped="" job="" failed=0
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop TERM 129' HUP

for stage in $ZERO_STAGE; do
    for offload in $OFFLOAD; do
        for rate in $RATES; do
            run="$OUTPUT/stage$stage-offload_$offload-lr$rate"
            if [ "$stage$offload" = 0cpu ] || python "$HERE/table.py" --finished "$run"; then
                continue
            fi
            [ -z "$stopped" ] || exit "$stopped"
            echo "== $run"
            mkdir -p "$run"
            rm -f "$run/exit_code"
            set -m
            (trap : INT TERM; run_script "$run" "$stage" "$offload" "$rate") </dev/null &
            job=$!
            set +m
            while true; do  # a signal ends `wait`, but not yet the run
                code=0
                wait "$job" || code=$?
                kill -0 "$job" 2>/dev/null || break
            done
            job=""
            echo "$code" >"$run/exit_code"
            python "$HERE/table.py" "$OUTPUT"
            [ -z "$stopped" ] || exit "$stopped"
            case "$code" in
                0) ;;
                130 | 143) exit "$code" ;;
                *) failed=1 ;;
            esac
        done
    done
done
python "$HERE/table.py" "$OUTPUT"
cat "$OUTPUT/sweep.md"
exit "$failed"
