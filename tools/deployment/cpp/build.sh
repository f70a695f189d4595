#!/usr/bin/env bash
# Compile detect.cpp against the PyTorch of $PYTHON (default: `python`) with $CXX: build.sh [OUTPUT]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/detect}
read -r torch abi < <("${PYTHON:-python}" -c \
  'import torch; print(torch.__path__[0], int(torch.compiled_with_cxx11_abi()))')
"${CXX:-g++}" -std=c++20 -O1 "$here/detect.cpp" -o "$out" -D_GLIBCXX_USE_CXX11_ABI="$abi" \
  -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
  -L"$torch/lib" -Wl,-rpath,"$torch/lib" -Wl,--no-as-needed -ltorch_cpu -ltorch -lc10 -ldl
echo "$out"
