#!/usr/bin/env bash
# Llama 2 7B, all weights, on several machines: the launcher starts the others over ssh (pdsh).
#
# Without ssh, or under Slurm: SCRIPT in run_350m_no_ssh.sh and run_350m_slurm.sh of
# training_scripts/opt/multi_node.
#
#   HOSTFILE=my_hosts bash training_scripts/llama/multi_node/run_7b.sh [OUTPUT] [ZERO_STAGE] [flags]
#
# Hardware: the machines that HOSTFILE names, as for training_scripts/opt/multi_node/run_350m.sh: 16
#           GPUs with 24 GB. --estimate_memory: 7.4 GiB a GPU in stage 3 for weights, gradients and
#           Adam (derived); activations come on top.
# Expect:   64 comparisons a step on 16 GPUs.
# Hyperparameters: learning rate, batch and epochs of InstructGPT's reward model of 6B (arXiv
#           2203.02155, appendix C.2); warm-up and weight decay of Llama 2 (arXiv 2307.09288,
#           sections 3.2.2 and 2.2), whose reward models take a rate of 1e-5 and 512 comparisons a
#           step.
# Override: HOSTFILE, MODEL, DATA (several, separated by spaces), MASTER_PORT
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../environment.sh"
read_arguments output/llama-7b 3 "$@"
train over_ssh meta-llama/Llama-2-7b-hf Dahoas/rm-static \
    --per_device_train_batch_size 4 \
    --learning_rate 9e-6 --warmup_ratio 0.03 --weight_decay 0.1 --num_train_epochs 1 \
    --max_seq_len 1024 --per_device_eval_batch_size 8 --gradient_checkpointing
