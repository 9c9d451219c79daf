#!/usr/bin/env bash
# OPT-125m on one GPU.
#
#   bash training_scripts/opt/single_gpu/run_125m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 8 GB. --estimate_memory: 2.3 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: those of DeepSpeed-Chat's step 2 for OPT-350m on one GPU (run_350m.sh); for this
#           size they are our choice.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-125m 0 "$@"
train one_gpu facebook/opt-125m Dahoas/rm-static \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \
    --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512
