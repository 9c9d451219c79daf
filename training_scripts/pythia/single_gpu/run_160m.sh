#!/usr/bin/env bash
# Pythia 160M on one GPU.
#
#   bash training_scripts/pythia/single_gpu/run_160m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 8 GB. --estimate_memory: 2.3 GiB a GPU in stage 0 for weights, gradients
#           and Adam (derived); activations come on top.
# Expect:   64 comparisons a step; an accuracy that starts near 0.5, since the head is
#           new.
# Hyperparameters: batch, epochs and schedule of arXiv 2403.17031 (Pythia 1B to 6.9B). Its rate is
#           3e-6; a higher one for a smaller model is our choice.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/pythia-160m 0 "$@"
train one_gpu EleutherAI/pythia-160m-deduped Dahoas/rm-static \
    --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \
    --learning_rate 1e-5 --weight_decay 0.01 --num_train_epochs 1 \
    --max_seq_len 512
