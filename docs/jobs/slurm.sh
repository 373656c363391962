#!/bin/bash
# A training on two machines with four GPUs each: `sbatch docs/jobs/slurm.sh experiment=airbench94 seed=1`, from the project's
# folder, which all machines must see. Arguments are those of src/train.py.
#SBATCH --job-name=cifar-pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%j.txt
# Put off or at the end of its time it gets SIGTERM, keeps its last checkpoint, and goes on from there when it is started
# again, by Slurm or by you.
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

# One task is one process; where one of them ends badly, Slurm ends them all.
srun --kill-on-bad-exit=1 python src/train.py trainer=ddp "$@"
