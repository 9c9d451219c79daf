#!/usr/bin/env bash
# Training on several machines that may not reach each other over ssh: start this on every one.
#
#   export HOSTFILE=my_hosts MASTER_ADDR=node1
#   NODE_RANK=0 bash training_scripts/opt/multi_node/run_350m_no_ssh.sh [OUTPUT] [ZERO_STAGE] [flags]
#   NODE_RANK=1 bash ...                # on the second machine, with the same words behind
#
# It runs run_350m.sh of this folder, or any other script of one size:
#
#   SCRIPT=training_scripts/opt/single_node/run_13b.sh NODE_RANK=0 bash ...
#
# Hardware: the machines that HOSTFILE names, one a line with its GPUs: `node1 slots=8`. NODE_RANK
#           counts its lines from 0. MASTER_ADDR is the first machine, whose MASTER_PORT the others
#           can reach. They share OUTPUT, or have --use_node_local_storage behind.
# Expect:   each waits until all have started; the metrics of the whole run are on the first one.
# Hyperparameters: those of SCRIPT.
# Override: NODE_RANK and MASTER_ADDR (needed), HOSTFILE, SCRIPT, MASTER_PORT (MODEL and DATA as in
#           SCRIPT)
set -euo pipefail
export NODE_RANK="${NODE_RANK:?is needed: the line of this machine in the hostfile, counted from 0}"
export MASTER_ADDR="${MASTER_ADDR:?is needed: name or address of the first machine}"
export LAUNCHER=without_ssh TRAINING_LOG="training.node$NODE_RANK.log"
exec bash "${SCRIPT:-$(dirname "${BASH_SOURCE[0]}")/run_350m.sh}" "$@"
