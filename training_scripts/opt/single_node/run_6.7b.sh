#!/usr/bin/env bash
# OPT-6.7b, all weights, on all GPUs of one machine.
#
#   bash training_scripts/opt/single_node/run_6.7b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 24 GB. --estimate_memory: 14.7 GiB a GPU in stage 3 for weights, gradients
#           and Adam (derived); activations come on top. With fewer GPUs, add --offload (167 GiB of
#           memory).
# Expect:   64 comparisons a step on 8 GPUs; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: learning rate, batch and epochs of InstructGPT's reward model of 6B (arXiv
#           2203.02155, appendix C.2). Weight decay and dropout as for OPT-350m.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-6.7b 3 "$@"
train all_gpus facebook/opt-6.7b Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
    --learning_rate 9e-6 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8 --gradient_checkpointing
