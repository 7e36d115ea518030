#!/usr/bin/env bash
# Prints which jax this machine needs: tpu, cuda13, cuda12 or cpu.
#   bash launch/accelerator.sh [ROOT]     ROOT: the folder with dev and sys, default /
set -euo pipefail
root="${1:-}"

# Google's network cards have the same vendor number as its TPUs, so the device file decides.
if compgen -G "$root/dev/accel[0-9]*" >/dev/null; then
  echo tpu
  exit
fi
if compgen -G "$root/dev/vfio/[0-9]*" >/dev/null &&
  grep -qsx 0x1ae0 "$root"/sys/bus/pci/devices/*/vendor; then
  echo tpu
  exit
fi

if ! command -v nvidia-smi >/dev/null; then
  echo cpu
  exit
fi
if ! gpus="$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader)" ||
  [[ -z "$gpus" ]]; then
  echo "launch: nvidia-smi finds no working NVIDIA driver; jax runs on the CPU" >&2
  echo cpu
  exit
fi
# CUDA 13 needs driver 580 and, on every GPU, compute capability 7.5: it no longer supports Pascal
# and Volta, which driver 580 still does.
awk -F ', *' '
  $1 + 0 < 580 || $2 + 0 < 7.5 { old = 1 }
  END { print old ? "cuda12" : "cuda13" }
' <<<"$gpus"
