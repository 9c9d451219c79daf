#!/usr/bin/env bash
# OPT-350m on several machines: the launcher starts the others over ssh (pdsh).
#
#   HOSTFILE=my_hosts bash training_scripts/opt/multi_node/run_350m.sh [OUTPUT] [ZERO_STAGE] [flags]
#
# Where ssh is not allowed: run_350m_no_ssh.sh. Under Slurm: run_350m_slurm.sh.
#
# Hardware: the machines that HOSTFILE names, one a line with its GPUs: `node1 slots=8`. They need
#           passwordless ssh, the same paths for code and Python, and an OUTPUT that they share.
# Expect:   the log of all machines here, with the metrics of the whole run on the first one.
# Override: HOSTFILE, MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../../environment.sh"
read_arguments output/opt-350m 2 "$@"
MODEL="${MODEL:-facebook/opt-350m}"
DATA="${DATA:-Dahoas/rm-static}"
deepspeed --hostfile "${HOSTFILE:-$HERE/hostfile}" --master_port "${MASTER_PORT:-29500}" \
    "$ROOT/main.py" \
    --model_name_or_path "$MODEL" \
    --data_path $DATA \
    --per_device_train_batch_size 4 \
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
