#!/bin/sh
# softspec train on the GPUs of one node or of several, by torchrun: run it once on every node.
#
#   CONFIG=my.yaml deploy/train/torchrun.sh                                      all GPUs of this node
#   CONFIG=my.yaml NPROC=4 deploy/train/torchrun.sh --set shard_base=true        four of them
#   CONFIG=my.yaml NNODES=2 RDZV_ENDPOINT=node1:29500 deploy/train/torchrun.sh   the same line on both nodes
#
# Whatever follows goes to `softspec train`. Nodes need the configuration, the base, the data and `output_dir` at the same
# places; softspec and torchrun must be on the PATH.
set -eu

: "${CONFIG:?is not set: say which YAML file to train from}"
NPROC=${NPROC:-gpu} # processes a node: a number, or gpu for as many as it has
NNODES=${NNODES:-1}
RDZV_ID=${RDZV_ID:-softspec} # tells this run from others at the same endpoint

if [ "$NNODES" = 1 ]; then
    meeting=--standalone
else
    : "${RDZV_ENDPOINT:?is not set: say HOST:PORT of one of the nodes, with a port that is free there}"
    meeting="--nnodes=$NNODES --rdzv-backend=c10d --rdzv-endpoint=$RDZV_ENDPOINT --rdzv-id=$RDZV_ID"
fi

# A step that runs when the run is stopped has five minutes to end, or the checkpoint is lost.
# shellcheck disable=SC2086 # the options are several words
exec torchrun $meeting --nproc-per-node="$NPROC" --shutdown-timeout=300 \
    --no-python softspec train "$CONFIG" "$@"
