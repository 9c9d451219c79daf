#!/usr/bin/env bash
# OPT-6.7b with LoRA on one GPU.
#
#   bash training_scripts/opt/single_gpu/run_6.7b_lora.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 24 GB. The frozen weights take 12.4 GiB in 16 bits, adapters and head about
#           1.4 GiB (76 million, 20 bytes each); activations come on top.
# Expect:   64 comparisons a step; the saved folder holds the merged model.
# Hyperparameters: batch and epochs of InstructGPT's reward model of 6B (arXiv 2203.02155, appendix
#           C.2); rank and rates of TRL's examples/scripts/reward_modeling.py, whose alpha is half
#           the rank instead of twice; for this model they are our choice.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-6.7b-lora 0 "$@"
train one_gpu facebook/opt-6.7b Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --lora_dim 32 --only_optimize_lora --lora_learning_rate 1e-4 \
    --learning_rate 1e-4 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8 --gradient_checkpointing
