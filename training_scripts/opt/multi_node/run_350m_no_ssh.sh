#!/usr/bin/env bash
# OPT-350m on several machines that may not reach each other over ssh: start this on every one.
#
#   export HOSTFILE=my_hosts MASTER_ADDR=node1
#   NODE_RANK=0 bash training_scripts/opt/multi_node/run_350m_no_ssh.sh [OUTPUT] [ZERO_STAGE] [flags]
#   NODE_RANK=1 bash ...                # on the second machine, with the same words behind
#
# Hardware: the machines that HOSTFILE names, one a line with its GPUs: `node1 slots=8`. NODE_RANK
#           counts its lines from 0. MASTER_ADDR is the first machine, whose MASTER_PORT the others
#           can reach. They share OUTPUT, or have --use_node_local_storage behind.
# Expect:   each waits until all have started; the metrics of the whole run are on the first one.
# Override: NODE_RANK and MASTER_ADDR (needed), HOSTFILE, MODEL, DATA (several, separated by spaces),
#           MASTER_PORT
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../../environment.sh"
read_arguments output/opt-350m 2 "$@"
NODE_RANK="${NODE_RANK:?is needed: the line of this machine in the hostfile, counted from 0}"
MASTER_ADDR="${MASTER_ADDR:?is needed: name or address of the first machine}"
MODEL="${MODEL:-facebook/opt-350m}"
DATA="${DATA:-Dahoas/rm-static}"
deepspeed --hostfile "${HOSTFILE:-$HERE/hostfile}" --no_ssh --node_rank "$NODE_RANK" \
    --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" \
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
    ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 | tee -i -a "$OUTPUT/training.node$NODE_RANK.log"
