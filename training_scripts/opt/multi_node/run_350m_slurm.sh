#!/usr/bin/env bash
#SBATCH --job-name=reward-model
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Training as a Slurm job, which goes on by itself after its time limit or a preemption.
#
#   sbatch training_scripts/opt/multi_node/run_350m_slurm.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
#
# It runs run_350m.sh of this folder, or any other script of one size:
#
#   SCRIPT=training_scripts/opt/single_node/run_13b.sh sbatch ...
#
# Submit it from the root of the project. Slurm's own flags stand before the script and override the
# lines above: `sbatch --nodes 4 --partition gpu ...`.
#
# Slurm starts one task for each GPU, without a launcher between them: those would end at the signal
# before main.py has saved, and with them the job step. 120 seconds before the time limit each
# process gets SIGTERM; main.py ends its step, saves the training state, exits with 143, and the job
# goes back into the queue. If a step and saving take longer, give more than 120.
#
# Hardware: nodes that share OUTPUT and this folder, with the GPUs that the lines above ask for.
# Expect:   slurm-JOB.out and OUTPUT/training.log, which a requeued job continues.
# Hyperparameters: those of SCRIPT.
# Override: SCRIPT, MASTER_ADDR (default: the job's first node), MASTER_PORT (default: by the job's
#           number; MODEL and DATA as in SCRIPT)
set -euo pipefail
HERE="${SLURM_SUBMIT_DIR:?is not set: start this with sbatch}/training_scripts/opt/multi_node"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"  # two jobs may share a node
export LAUNCHER=under_slurm
code=0
bash "${SCRIPT:-$HERE/run_350m.sh}" "$@" || code=$?
if [ "$code" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
