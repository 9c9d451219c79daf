#!/usr/bin/env bash
# Llama 2 7B with LoRA on all GPUs of one machine.
#
#   bash training_scripts/llama/single_node/run_7b_lora.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 8 GPUs with 24 GB, or fewer. The frozen weights take 12.3 GiB in 16 bits, which stage 3
#           spreads over the GPUs.
# Expect:   64 comparisons a step on 8 GPUs; adapters of rank 64 on all linear layers and a full
#           head; the saved folder holds the merged model.
# Hyperparameters: batch and epochs of InstructGPT (arXiv 2203.02155, appendix C.2), warm-up of
#           Llama 2 (arXiv 2307.09288, section 3.2.2). Rank and rates are our choice;
#           DeepSpeed-Chat's step 2 has rank 128, 9.65e-6 and, for the adapters, 5e-4.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/llama-7b-lora 3 "$@"
train all_gpus meta-llama/Llama-2-7b-hf Dahoas/rm-static \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
    --lora_dim 64 --lora_module_name layers. --only_optimize_lora --lora_learning_rate 2e-4 \
    --learning_rate 5e-5 --warmup_ratio 0.03 --weight_decay 0.1 --num_train_epochs 1 \
    --max_seq_len 1024 --per_device_eval_batch_size 8 --gradient_checkpointing
