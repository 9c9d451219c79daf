#!/usr/bin/env bash
# Bloom 560M on one GPU. Its attention (ALiBi) cannot be packed: batches are padded.
#
#   bash training_scripts/bloom/single_gpu/run_560m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 24 GB. --estimate_memory: 10.4 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step, 4 at a time; `batches are padded: ...` in the log, and a prompt
#           that is computed once for each answer.
# Hyperparameters: those of DeepSpeed-Chat's step 2 for OPT-350m on one GPU; for this model they are
#           our choice. DeepSpeed-Chat also resets Bloom's last layer norm, whose weights it found
#           to make bf16 hard; here it stays.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/bloom-560m 0 "$@"
train one_gpu bigscience/bloom-560m Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --learning_rate 5e-5 --weight_decay 0.1 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8 --gradient_checkpointing
