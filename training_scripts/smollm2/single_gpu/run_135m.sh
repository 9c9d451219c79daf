#!/usr/bin/env bash
# SmolLM2 135M Instruct on one GPU, with chat data.
#
#   bash training_scripts/smollm2/single_gpu/run_135m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 8 GB. --estimate_memory: 2.5 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step, rendered with the model's chat template. On a CPU, the same model
#           has been trained on other data: docs/results.md.
# Hyperparameters: the rate with which this model did best on a CPU, with 8 comparisons a step
#           (docs/results.md). Length and epochs of TRL's examples/scripts/reward_modeling.py; the
#           batch is our choice.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/smollm2-135m 0 "$@"
train one_gpu HuggingFaceTB/SmolLM2-135M-Instruct trl-lib/ultrafeedback_binarized \
    --per_device_train_batch_size 16 --gradient_accumulation_steps 4 \
    --learning_rate 5e-5 --num_train_epochs 1 --warmup_ratio 0.1 \
    --max_seq_len 2048 --per_device_eval_batch_size 16
