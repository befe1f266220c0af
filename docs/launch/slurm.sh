#!/bin/bash
# Four machines with eight GPUs each: sbatch docs/launch/slurm.sh --dataset s3://bucket/images --model path/or/hub-name
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
# SIGTERM half a minute before the time limit: all ranks save the same update, and the job can be requeued.
#SBATCH --signal=TERM@30
#SBATCH --requeue

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The output folder must be visible to all machines. "auto" continues what an earlier job began.
srun torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node=8 --max-restarts=3 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \
    -m train.main --output_dir "$HOME/runs/my-run" --resume_from_checkpoint auto "$@"
