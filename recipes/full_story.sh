#!/usr/bin/env bash
# From raw text to a language model that writes, on a CPU: corpus, clean, tokenizer, pretrain, evaluate, generate, report.
#
#     bash recipes/full_story.sh [FOLDER]        # default runs/story; STORY_SIZE=tiny for seconds instead of minutes
#
# Each stage writes its own folder with a run.json. A stage that has finished is not done again, so an interrupted
# story goes on where it stopped.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-runs/story}

case "${STORY_SIZE:-demo}" in
demo)
    stories=24000 vocabulary=2048 model=llama-1m block=256 batch=32 steps=1000 warmup=50 rate=3e-3 every=100 rows=200
    ;;
tiny)
    stories=400 vocabulary=512 model=llama-1m block=64 batch=8 steps=12 warmup=2 rate=3e-3 every=6 rows=20
    ;;
*)
    echo "STORY_SIZE is demo or tiny, got ${STORY_SIZE}" >&2
    exit 1
    ;;
esac

stage() {
    echo "
== $1"
    shift
    hfstack run "$@"
}
began=$SECONDS

stage "1/7 write a corpus of short stories, with noise planted in it" \
    demo_corpus --stories $stories --output_dir "$out/corpus"

stage "2/7 clean it: repair, filter, mask, remove duplicates" \
    clean --datasets "$out/corpus/raw.jsonl" --eval_fraction 0.02 --output_dir "$out/clean"

stage "3/7 train a tokenizer on what is left" \
    tokenizer --datasets "$out/clean/train.jsonl" --eval_datasets "$out/clean/eval.jsonl" \
    --vocab_size $vocabulary --output_dir "$out/tokenizer"

resume=()
if compgen -G "$out/pretrain/checkpoint-*" >/dev/null; then
    resume=(--resume_from_checkpoint last)
fi
stage "4/7 pretrain a language model from random weights" \
    pretrain_clm --model_name_or_path "$here/architectures/$model.json" --tokenizer_name_or_path "$out/tokenizer" \
    --datasets "$out/clean/train.jsonl" --eval_datasets "$out/clean/eval.jsonl" --block_size $block \
    --per_device_train_batch_size $batch --per_device_eval_batch_size $batch --max_steps $steps --warmup_steps $warmup \
    --learning_rate $rate --eval_steps $every --save_steps $every --logging_steps 10 \
    --output_dir "$out/pretrain" ${resume[@]+"${resume[@]}"}

stage "5/7 evaluate it on stories that it has not seen" \
    evaluate_lm --model_name_or_path "$out/pretrain" --eval_datasets "$out/clean/eval.jsonl" --max_rows $rows \
    --output_dir "$out/evaluate"

stage "6/7 let it write" \
    generate --model_name_or_path "$out/pretrain" --output_dir "$out/generate" \
    --prompts "Once upon a time" "There was a brave fox" "It was a rainy morning" "Rosie the mouse was very shy"

stage "7/7 put it all on one page" \
    report --runs "$out/corpus" "$out/clean" "$out/tokenizer" "$out/pretrain" "$out/evaluate" "$out/generate" \
    --output_dir "$out/report"

echo "
The story took $((SECONDS - began)) s. Open $out/report/report.html in a browser."
