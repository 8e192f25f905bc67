#!/usr/bin/env bash
# Fine-tune ImageNet's ResNet-50 on your own photos, PHOTOS/CLASS/*:  bash examples/finetune.sh PHOTOS [OPTION OF train …]
#
# A tenth of each class is kept for validation. The weights are downloaded once (98 MB). Without a network connection,
# give a file: --set model.pretrained=FILE. The recipe's learning rate is a safe one; docs/finetuning.md explains when to
# change it.
set -euo pipefail
photos=$1
shift
penstock pack "$photos" data/photos --split train=0.9,val=0.1 --apply-orientation
penstock train --data data/photos --recipe finetune --run-dir runs/photos "$@"
penstock predict runs/photos "$photos" --top-k 1
penstock export runs/photos runs/photos/model.safetensors
