#!/usr/bin/env bash
# OPT-350m on several machines: the launcher starts the others over ssh (pdsh).
#
# Where ssh is not allowed: run_350m_no_ssh.sh. Under Slurm: run_350m_slurm.sh. Another model:
# put LAUNCHER=over_ssh before its script.
#
#   HOSTFILE=my_hosts bash training_scripts/opt/multi_node/run_350m.sh [OUTPUT] [ZERO_STAGE] [flags]
#
# Hardware: the machines that HOSTFILE names, one a line with its GPUs: `node1 slots=8`. They need
#           passwordless ssh, the same paths for code and Python, and an OUTPUT that they share.
#           --estimate_memory: 1.0 GiB a GPU in stage 2 on 16 GPUs for weights, gradients and Adam
#           (derived); activations come on top.
# Expect:   64 comparisons a step on 16 GPUs; the log of all machines here, with the metrics of the
#           whole run on the first one.
# Hyperparameters: those of single_node/run_350m.sh. DeepSpeed-Chat's step 2 for several nodes takes
#           2 comparisons a GPU and mixes four data sets.
# Override: HOSTFILE, MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/opt-350m 2 "$@"
train over_ssh facebook/opt-350m Dahoas/rm-static \
    --per_device_train_batch_size 4 \
    --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 --num_train_epochs 1 \
    --max_seq_len 512 --per_device_eval_batch_size 8
