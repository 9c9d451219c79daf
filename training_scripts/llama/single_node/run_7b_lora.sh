#!/usr/bin/env bash
# Llama 7B with LoRA on all GPUs of one machine.
#
#   bash training_scripts/llama/single_node/run_7b_lora.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: GPUs with 40 GB; stage 3 spreads the frozen weights too.
# Expect:   adapters of rank 64 on all linear layers and a full head; the saved folder holds the
#           merged model.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/llama-7b-lora 3 "$@"
MODEL="${MODEL:-meta-llama/Llama-2-7b-hf}"
DATA="${DATA:-Dahoas/rm-static}"
deepspeed ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} --master_port "${MASTER_PORT:-29500}" \
    "$ROOT/main.py" \
    --model_name_or_path "$MODEL" \
    --data_path $DATA \
    --per_device_train_batch_size 4 \
    --per_device_eval_batch_size 8 \
    --gradient_accumulation_steps 2 \
    --max_seq_len 1024 \
    --learning_rate 5e-5 \
    --lora_dim 64 \
    --lora_module_name layers. \
    --only_optimize_lora \
    --lora_learning_rate 2e-4 \
    --weight_decay 0.1 \
    --num_train_epochs 1 \
    --warmup_ratio 0.03 \
    --gradient_checkpointing \
    --zero_stage "$ZERO_STAGE" \
    --enable_tensorboard \
    --output_dir "$OUTPUT" \
    ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 | tee -i -a "$OUTPUT/training.log"
