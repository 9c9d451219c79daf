#!/usr/bin/env bash
# The whole job on a plain CPU: writes a tiny OPT with random weights and a few thousand
# comparisons, trains a reward model on them, evaluates it on prompts it never saw and scores the
# two built-in prompts of rw_eval.py. Needs no GPU, no hub and no download but the packages.
#
#   bash training_scripts/opt/cpu/run_tiny.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 2 CPU cores, 2 GB of memory.
# Expect:   under a minute; accuracy 0.96 to 0.98 on unseen prompts, both built-in prompts right.
# Hyperparameters: our choice, for this model and these data.
# Override: DEMO (where the demo is written), MODEL, DATA (a folder with train and test files), SEED
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-tiny 0 "$@"
DEMO="${DEMO:-output/demo}"
SEED="${SEED:-1234}"
{
    DS_ACCELERATOR=cpu PYTHONPATH="$ROOT" python -m utils.demo "$DEMO"
    train_and_score "${MODEL:-$DEMO/model}" "${DATA:-$DEMO/data}" \
        --per_device_train_batch_size 32 --per_device_eval_batch_size 64 --max_seq_len 256 \
        --learning_rate 1e-3 --num_train_epochs 3 --warmup_ratio 0.05 --eval_interval 50
} 2>&1 | tee -i -a "$OUTPUT/training.log"
