#!/usr/bin/env bash
# SmolLM2 1.7B Instruct on one GPU, with chat data.
#
#   bash training_scripts/smollm2/single_gpu/run_1.7b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 48 GB. --estimate_memory: 31.9 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step, rendered with the model's chat template.
# Hyperparameters: 1e-5, since reward models of 1B to 8B are trained at 1e-6 to 1e-5; length and
#           epochs of TRL's examples/scripts/reward_modeling.py; the batch is our choice.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/smollm2-1.7b 0 "$@"
train one_gpu HuggingFaceTB/SmolLM2-1.7B-Instruct trl-lib/ultrafeedback_binarized \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --learning_rate 1e-5 --num_train_epochs 1 --warmup_ratio 0.1 \
    --max_seq_len 2048 --per_device_eval_batch_size 8 --gradient_checkpointing
