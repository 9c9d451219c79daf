#!/usr/bin/env bash
# Qwen 2.5 7B Instruct, all weights, on all GPUs of one machine, with chat data.
#
#   bash training_scripts/qwen/single_node/run_7b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 40 GB. --estimate_memory: 16.8 GiB a GPU in stage 3 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   256 comparisons a step on 8 GPUs, rendered with the model's chat template.
# Hyperparameters: those of llama/single_node/run_8b.sh (OpenRLHF for Llama 3 8B); for this family
#           they are our choice.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/qwen-7b 3 "$@"
train all_gpus Qwen/Qwen2.5-7B-Instruct trl-lib/ultrafeedback_binarized \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 8 \
    --learning_rate 9e-6 --warmup_ratio 0.03 --num_train_epochs 1 \
    --max_seq_len 2048 --per_device_eval_batch_size 4 --gradient_checkpointing
