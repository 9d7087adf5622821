#!/usr/bin/env bash
# The whole method as jobs: in each round features by shards, clusters, refinement by the round before, and training.
#
#   examples/jobs_with_shell/run.sh DATA MODEL OUT [ROUNDS] [SHARDS] [ARGUMENTS OF hf-plr train image ...]
#
# DATA and MODEL are as for `hf-plr train image`; MODEL must exist. Run it again after it was interrupted: what is
# complete stays. The loop over shards is what a cluster takes over, such as `sbatch --array=0-15` with
# --shard $SLURM_ARRAY_TASK_ID/16; everything else is one command a round.
set -euo pipefail

data=$1 model=$2 out=$3 rounds=${4:-2} shards=${5:-4}
shift $(($# < 5 ? $# : 5))

labels=
for ((round = 0; round < rounds; round++)); do
  features=$out/features/$round clusters=$out/clusters/$round refined=$out/refined/$round trained=$out/trained/$round

  for ((shard = 0; shard < shards; shard++)); do
    hf-plr embed --model "$model" --dataset "$data" --shard "$shard/$shards" --skip_existing --output "$features"
  done

  start=() # from the centroids of the round before
  ((round > 0)) && start=(--start "$out/clusters/$((round - 1))")
  hf-plr cluster "$features" "${start[@]}" --skip_existing --output "$clusters"

  if [[ -z $labels ]]; then
    labels=$clusters
  else
    hf-plr refine --previous "$labels" --current "$clusters" --overwrite --output "$refined"
    labels=$refined
  fi

  if [[ ! -e $trained/metrics.json ]]; then
    resume=()
    compgen -G "$trained/checkpoint-*" >/dev/null && resume=(--resume_from_checkpoint)
    hf-plr train image --dataset_name "$data" --model_name_or_path "$model" --labels "$labels" \
      --num_train_epochs 1 "${resume[@]}" --output_dir "$trained" "$@"
  fi
  model=$trained
done
