#!/usr/bin/env bash
# Pythia 6.9B, all weights, on all GPUs of one machine.
#
#   bash training_scripts/pythia/single_node/run_6.9b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 24 GB. --estimate_memory: 14.7 GiB a GPU in stage 3 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step on 8 GPUs; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: rate, batch, epochs and weight decay of arXiv 2403.17031 (code:
#           vwxyzjn/summarize_from_feedback_details, reward.py), whose AdamW has an epsilon of 1e-5.
#           It starts from a model finetuned on summaries: give yours as MODEL.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/pythia-6.9b 3 "$@"
train all_gpus EleutherAI/pythia-6.9b-deduped Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
    --learning_rate 3e-6 --weight_decay 0.01 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8 --gradient_checkpointing
