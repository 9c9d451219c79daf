#!/usr/bin/env bash
# OPT-2.7b, all weights, on one GPU with Adam's states in the memory of the machine.
#
#   bash training_scripts/opt/single_gpu/run_2.7b.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 24 GB, 96 GB of memory. --estimate_memory: 4.9 GiB a GPU and 59.3 GiB of
#           memory in stage 2 with --offload (derived); activations come on top. DeepSpeed compiles
#           its CPU Adam once, which needs a compiler. Without --offload 49.4 GiB: one GPU with 80
#           GB.
# Expect:   64 comparisons a step; then one step of Adam on the CPU; an accuracy that
#           starts near 0.5, since the head is new.
# Hyperparameters: learning rate, batch and epochs of InstructGPT's reward model of 6B (arXiv
#           2203.02155, appendix C.2). Weight decay and dropout as for OPT-350m.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-2.7b 2 "$@"
train one_gpu facebook/opt-2.7b Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
    --learning_rate 9e-6 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8 --gradient_checkpointing --offload
