#!/usr/bin/env bash
# Llama 2 7B, all weights, on all GPUs of one machine, with DeepSpeed-Chat's hyperparameters.
#
#   bash training_scripts/llama/single_node/run_7b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 40 GB. --estimate_memory: 14.3 GiB a GPU in stage 3 for weights, gradients
#           and Adam (derived); activations come on top. With fewer GPUs, add --offload (166 GiB of
#           memory).
# Expect:   64 comparisons a step on 8 GPUs; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: DeepSpeed-Chat's step 2, llama2/run_llama2_7b.sh, but for its --offload and
#           --data_split 2,4,4.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/llama-7b 3 "$@"
train all_gpus meta-llama/Llama-2-7b-hf Dahoas/rm-static \
    --per_device_train_batch_size 8 \
    --learning_rate 9.65e-6 --weight_decay 0.1 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8 --gradient_checkpointing
