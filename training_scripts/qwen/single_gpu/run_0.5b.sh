#!/usr/bin/env bash
# Qwen 2.5 0.5B Instruct on one GPU, with chat data.
#
#   bash training_scripts/qwen/single_gpu/run_0.5b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 24 GB. --estimate_memory: 9.2 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step, rendered with the model's chat template.
# Hyperparameters: rate, length and epochs of TRL's examples/scripts/reward_modeling.py for
#           Qwen2-0.5B-Instruct; the batch (TRL: 8 on each GPU) and the cosine schedule are ours.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/qwen-0.5b 0 "$@"
train one_gpu Qwen/Qwen2.5-0.5B-Instruct trl-lib/ultrafeedback_binarized \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --learning_rate 1e-5 --num_train_epochs 1 \
    --max_seq_len 2048 --per_device_eval_batch_size 8 --gradient_checkpointing
