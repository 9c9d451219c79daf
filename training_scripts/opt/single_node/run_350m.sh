#!/usr/bin/env bash
# OPT-350m on all GPUs of one machine.
#
#   bash training_scripts/opt/single_node/run_350m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: 2 to 8 GPUs with 16 GB each. NUM_GPUS=2 also runs on a CPU, as two processes.
# Expect:   8 GPUs take 64 comparisons a step, as one GPU does with 8 accumulation steps.
# Override: MODEL, DATA (several, separated by spaces), NUM_GPUS, MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-350m 2 "$@"
MODEL="${MODEL:-facebook/opt-350m}"
DATA="${DATA:-Dahoas/rm-static}"
deepspeed ${NUM_GPUS:+--num_gpus "$NUM_GPUS"} --master_port "${MASTER_PORT:-29500}" \
    "$ROOT/main.py" \
    --model_name_or_path "$MODEL" \
    --data_path $DATA \
    --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 8 \
    --max_seq_len 512 \
    --learning_rate 5e-5 \
    --weight_decay 0.1 \
    --dropout 0.0 \
    --num_train_epochs 1 \
    --zero_stage "$ZERO_STAGE" \
    --enable_tensorboard \
    --output_dir "$OUTPUT" \
    ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 | tee -i -a "$OUTPUT/training.log"
