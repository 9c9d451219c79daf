#!/usr/bin/env bash
# OPT-1.3b, all weights, on one GPU.
#
#   bash training_scripts/opt/single_gpu/run_1.3b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 40 GB. --estimate_memory: 24.5 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top. On 24 GB, give stage 2 and --offload
#           (run_2.7b.sh).
# Expect:   64 comparisons a step; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: learning rate, batch and epochs of InstructGPT's reward model of 6B (arXiv
#           2203.02155, appendix C.2), which found other rates, by up to 50 %, about as good; its
#           rate falls to a tenth, ours to 0. Weight decay and dropout as for OPT-350m.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-1.3b 0 "$@"
train one_gpu facebook/opt-1.3b Dahoas/rm-static \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \
    --learning_rate 9e-6 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --gradient_checkpointing
