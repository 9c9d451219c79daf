#!/usr/bin/env bash
# Llama 3.1 8B Instruct with LoRA on one GPU, with chat data.
#
#   bash training_scripts/llama/single_gpu/run_8b_lora.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 40 GB. The frozen weights take 14.0 GiB in 16 bits, adapters and head about
#           1.6 GiB (84 million, 20 bytes each); activations come on top.
# Expect:   64 comparisons a step, rendered with the model's chat template; the saved
#           folder holds the merged model.
# Hyperparameters: rank, rates, length and epochs of TRL's examples/scripts/reward_modeling.py with
#           LoRA; the batch, the schedule (cosine, where TRL's is linear) and the adapters' scale
#           (alpha twice the rank, where TRL's is half of it) are our choice.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/llama-8b-lora 0 "$@"
train one_gpu meta-llama/Llama-3.1-8B-Instruct trl-lib/ultrafeedback_binarized \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --lora_dim 32 --only_optimize_lora --lora_learning_rate 1e-4 \
    --learning_rate 1e-4 --num_train_epochs 1 \
    --max_seq_len 2048 --per_device_eval_batch_size 4 --gradient_checkpointing
