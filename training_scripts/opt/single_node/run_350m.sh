#!/usr/bin/env bash
# OPT-350m on all GPUs of one machine.
#
#   bash training_scripts/opt/single_node/run_350m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 16 GB, or fewer. --estimate_memory: 1.3 GiB a GPU in stage 2 for weights,
#           gradients and Adam (derived); activations come on top. NUM_GPUS=2 also runs on a CPU, as
#           two processes.
# Expect:   64 comparisons a step on 8 GPUs; with fewer, accumulate: --gradient_accumulation_steps.
# Hyperparameters: DeepSpeed-Chat's step 2, single_node/run_350m.sh, but for dropout, which it
#           leaves on there and switches off on one GPU, and its six data sets.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-350m 2 "$@"
train all_gpus facebook/opt-350m Dahoas/rm-static \
    --per_device_train_batch_size 8 \
    --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8
