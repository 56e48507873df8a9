#!/usr/bin/env bash
# Make images/, kept/ and checkpoint/ again, from nothing: about an hour on two cores. `make pretrain` calls it with the
# environment's python and tune first on the PATH. What it has made already, it keeps: remove work/ to begin anew.
set -euo pipefail
cd "$(dirname "$0")/.."
work=pretrain/work

python -m pretrain.shapes images --new --seed 7
python -m pretrain.shapes kept --kept --seed 8
[ -d $work/pictures ] || python -m pretrain.shapes $work/pictures --count 8192
[ -d $work/autoencoder ] || python -m pretrain.autoencoder $work/autoencoder
[ -d $work/base ] || python -m pretrain.assemble $work/autoencoder $work/base
(cd $work && tune run ../config.toml)
python -m pretrain.assemble $work/autoencoder checkpoint --transformer $work/runs/pretrain/final/transformer --half
