#!/usr/bin/env bash
# Llama 7B, all weights, on several machines: the launcher starts the others over ssh (pdsh).
#
#   HOSTFILE=my_hosts bash training_scripts/llama/multi_node/run_7b.sh [OUTPUT] [ZERO_STAGE] [flags]
#
# Hardware: the machines that HOSTFILE names, as for training_scripts/opt/multi_node/run_350m.sh:
#           16 GPUs with 40 GB. Stage 3 spreads weights, gradients and optimizer states, about
#           120 GB for 7 billion weights. With less memory, add --offload.
# Expect:   16 GPUs take 64 comparisons a step.
# Override: HOSTFILE, MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/llama-7b 3 "$@"
HOSTFILE="${HOSTFILE:-$ROOT/training_scripts/opt/multi_node/hostfile}"
MODEL="${MODEL:-meta-llama/Llama-2-7b-hf}"
DATA="${DATA:-Dahoas/rm-static}"
deepspeed --hostfile "$HOSTFILE" --master_port "${MASTER_PORT:-29500}" "$ROOT/main.py" \
    --model_name_or_path "$MODEL" \
    --data_path $DATA \
    --per_device_train_batch_size 4 \
    --per_device_eval_batch_size 8 \
    --max_seq_len 1024 \
    --learning_rate 9e-6 \
    --weight_decay 0.1 \
    --num_train_epochs 1 \
    --warmup_ratio 0.03 \
    --gradient_checkpointing \
    --zero_stage "$ZERO_STAGE" \
    --enable_tensorboard \
    --output_dir "$OUTPUT" \
    ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 | tee -i -a "$OUTPUT/training.log"
