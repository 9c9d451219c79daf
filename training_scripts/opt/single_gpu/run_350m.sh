#!/usr/bin/env bash
# OPT-350m on one GPU, with DeepSpeed-Chat's hyperparameters.
#
#   bash training_scripts/opt/single_gpu/run_350m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 16 GB. --estimate_memory: 6.2 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top. It also runs on a CPU (fp32, slowly: for a
#           look, add --max_steps 3).
# Expect:   64 comparisons a step; a loss that starts near 0.7 (ln 2); the accuracy on
#           held-out prompts at the end of the log.
# Hyperparameters: DeepSpeed-Chat's step 2, opt/single_gpu/run_350m.sh. It takes 16 comparisons at a
#           time, 64 a step too, and 40 % of the data (--data_split 2,4,4).
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-350m 0 "$@"
train one_gpu facebook/opt-350m Dahoas/rm-static \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \
    --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8
