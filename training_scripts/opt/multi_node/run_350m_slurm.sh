#!/usr/bin/env bash
#SBATCH --job-name=opt-350m-reward
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# OPT-350m as a Slurm job, which goes on by itself after its time limit or a preemption.
#
#   sbatch training_scripts/opt/multi_node/run_350m_slurm.sh [OUTPUT] [ZERO_STAGE] [flags of main.py]
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
# Override: MODEL, DATA (several, separated by spaces), MASTER_ADDR (default: the job's first node),
#           MASTER_PORT
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?: start it with sbatch}/training_scripts/environment.sh"
read_arguments output/opt-350m 2 "$@"
MODEL="${MODEL:-facebook/opt-350m}"
DATA="${DATA:-Dahoas/rm-static}"
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export MASTER_PORT="${MASTER_PORT:-29500}"
RANKS='RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"'  # each task's
code=0
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$RANKS" bash \
    python -u "$ROOT/main.py" \
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
    --resume_from_checkpoint latest \
    --save_interval 200 \
    --save_total_limit 2 \
    --enable_tensorboard \
    --output_dir "$OUTPUT" \
    ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 | tee -i -a "$OUTPUT/training.log" || code=$?
if [ "$code" = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
