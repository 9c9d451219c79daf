#!/usr/bin/env bash
# Pythia 1B, all weights, on one GPU.
#
#   bash training_scripts/pythia/single_gpu/run_1b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 24 GB. --estimate_memory: 16.9 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: rate, batch, epochs and weight decay of arXiv 2403.17031 (code:
#           vwxyzjn/summarize_from_feedback_details, reward.py), whose AdamW has an epsilon of 1e-5.
#           It starts from a model finetuned on summaries: give yours as MODEL.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/pythia-1b 0 "$@"
train one_gpu EleutherAI/pythia-1b-deduped Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --learning_rate 3e-6 --weight_decay 0.01 --num_train_epochs 1 \
    --max_seq_len 512 --gradient_checkpointing
