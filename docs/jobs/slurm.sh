#!/bin/bash
# Train on two machines with four GPUs each: `sbatch docs/jobs/slurm.sh experiment=airbench94 seed=1`, from the project's
# directory, which must be on a shared file system. Arguments are overrides of src/train.py.
#SBATCH --job-name=cifar-pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%j.txt
# When preempted or out of time the training receives SIGTERM and keeps its last checkpoint; started again, by Slurm or by
# hand, it resumes.
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

# One task per process; if one fails, Slurm ends all.
srun --kill-on-bad-exit=1 python src/train.py trainer=ddp "$@"
