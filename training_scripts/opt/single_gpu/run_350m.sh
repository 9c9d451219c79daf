#!/usr/bin/env bash
# OPT-350m on one GPU, with DeepSpeed-Chat's hyperparameters.
#
#   bash training_scripts/opt/single_gpu/run_350m.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# Hardware: one GPU with 16 GB. It also runs on a CPU (fp32, slowly: for a look, add --max_steps 3).
# Expect:   a loss that starts near 0.7; the accuracy on held-out prompts at the end of the log.
# Override: MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-350m 0 "$@"
MODEL="${MODEL:-facebook/opt-350m}"
DATA="${DATA:-Dahoas/rm-static}"
deepspeed --num_gpus 1 --master_port "${MASTER_PORT:-29500}" "$ROOT/main.py" \
    --model_name_or_path "$MODEL" \
    --data_path $DATA \
    --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 8 \
    --gradient_accumulation_steps 4 \
    --max_seq_len 512 \
    --learning_rate 5e-5 \
    --weight_decay 0.1 \
    --dropout 0.0 \
    --num_train_epochs 1 \
    --zero_stage "$ZERO_STAGE" \
    --enable_tensorboard \
    --output_dir "$OUTPUT" \
    ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 | tee -i -a "$OUTPUT/training.log"
