#!/bin/sh
# Scores a model with lm-evaluation-harness, quantized with aoq or not: bits per byte of English prose and a few questions.
#
#     examples/evaluate_lm_eval.sh DIR-int4 [--limit 8 ...]
#
# The tasks are files beside this one, so it needs no network. lm_eval's own tasks go the same way.
set -e
model=$1
shift
exec lm_eval run --model hf --model_args "pretrained=$model,dtype=bfloat16" --device cpu \
  --tasks aoq_prose,aoq_questions --include_path "$(dirname "$0")/lm_eval_tasks" "$@"
