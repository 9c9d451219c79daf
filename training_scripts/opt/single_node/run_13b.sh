#!/usr/bin/env bash
# OPT-13b, all weights, on all GPUs of one machine.
#
#   bash training_scripts/opt/single_node/run_13b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 40 GB. --estimate_memory: 27.9 GiB a GPU in stage 3 for weights, gradients
#           and Adam (derived); activations come on top. With 24 GB each, add --offload (323 GiB of
#           memory).
# Expect:   64 comparisons a step on 8 GPUs; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: batch and epochs of InstructGPT's reward model (6B; arXiv 2203.02155, appendix
#           C.2). Its rate is 9e-6; less for twice the size is our choice.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-13b 3 "$@"
train all_gpus facebook/opt-13b Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
    --learning_rate 5e-6 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 4 --gradient_checkpointing
