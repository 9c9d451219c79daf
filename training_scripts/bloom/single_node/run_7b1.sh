#!/usr/bin/env bash
# Bloom 7B1, all weights, on all GPUs of one machine. Its attention (ALiBi) cannot be packed:
# batches are padded.
#
#   bash training_scripts/bloom/single_node/run_7b1.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 40 GB. --estimate_memory: 18.6 GiB a GPU in stage 3 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step on 8 GPUs; `batches are padded: ...` in the log, and a prompt that
#           is computed once for each answer.
# Hyperparameters: learning rate, batch and epochs of InstructGPT's reward model of 6B (arXiv
#           2203.02155, appendix C.2). The weight decay is our choice.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/bloom-7b1 3 "$@"
train all_gpus bigscience/bloom-7b1 Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
    --learning_rate 9e-6 --weight_decay 0.1 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 4 --gradient_checkpointing
