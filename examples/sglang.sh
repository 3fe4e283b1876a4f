#!/bin/sh
# Quantizes a model to int4, serves it with SGLang, asks it a question: sh examples/sglang.sh MODEL_DIR [PORT [OPTIONS]]
set -eu
model=$1 port=${2:-30000}
shift $(($# < 2 ? $# : 2))
work=$(mktemp -d)
python -m aoq quantize "$model" -o "$work/int4" --config int4 --group-size 32
sglang serve --model-path "$work/int4" --served-model-name int4 --port "$port" --context-length 1024 "$@" &
server=$!
trap 'kill $server; wait $server || true; rm -rf "$work"' EXIT
until curl -sf "localhost:$port/health"; do
    kill -0 $server # or stop here: it has said why
    sleep 1
done
curl -sf "localhost:$port/v1/chat/completions" -H 'Content-Type: application/json' -d '{
    "model": "int4", "temperature": 0, "max_tokens": 30,
    "messages": [{"role": "user", "content": "What is 2 + 2?"}]}'
echo
