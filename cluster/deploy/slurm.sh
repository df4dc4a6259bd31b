#!/usr/bin/env bash
# One Ray cluster per Slurm job, gone when the job ends. From the repository's folder, on storage that all nodes see:
#
#   sbatch --nodes=2 cluster/deploy/slurm.sh --config recipes/configs/sppo_llama3_8b.yaml output=/shared/runs
#
# What follows the script's name goes to recipes/sppo.py. A job that was preempted resumes where it stopped when the
# same line is submitted again: committed shards are never computed twice.
#SBATCH --job-name=kumite
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --output=kumite-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
source "${VENV:-.venv}/bin/activate"

# A token of this job's own, readable by its owner alone; every Ray process of the job finds it by this path.
umask 077
mkdir -p "$HOME/.ray"
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/token-$SLURM_JOB_ID"
python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
umask 022

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}')

# Recipes import the packages of this folder, on the driver and on every worker.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Starts Ray on every node, runs the recipe on the first, stops Ray when it ends; hence --exclusive above.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$address:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  python recipes/sppo.py "$@"
