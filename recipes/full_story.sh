#!/usr/bin/env bash
# From raw text to a language model that writes, on a CPU: corpus, clean, tokenizer, pretrain, evaluate, generate, report.
# With STORY_ALIGN=1 also to one that was trained by preferences: sft, preferences, reward, rloo, and the win rate by a
# rule that training never saw.
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
    stories=24000 vocabulary=2048 model=llama-1m block=256 batch=32 steps=800 warmup=50 rate=3e-3 every=100 rows=200
    sft_steps=150 prompts=300 reward_steps=60 rloo_steps=30 answers=64 answer_tokens=256 compared=64
    answerer=$out/sft # who writes the answers that are compared
    ;;
tiny)
    stories=400 vocabulary=512 model=llama-1m block=64 batch=8 steps=12 warmup=2 rate=3e-3 every=6 rows=20
    sft_steps=2 prompts=8 reward_steps=2 rloo_steps=2 answers=8 answer_tokens=24 compared=8
    answerer= # a model this young writes nothing to compare: the generator answers
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

resume() { # go on from the last checkpoint of an interrupted stage
    if compgen -G "$out/$1/checkpoint-*" >/dev/null; then
        echo --resume_from_checkpoint last
    fi
}

stage "1/7 write a corpus of short stories, with noise planted in it" \
    demo_corpus --stories $stories --instructions 4000 --output_dir "$out/corpus"

stage "2/7 clean it: repair, filter, mask, remove duplicates" \
    clean --datasets "$out/corpus/raw.jsonl" --eval_fraction 0.02 --output_dir "$out/clean"

stage "3/7 train a tokenizer on what is left" \
    tokenizer --datasets "$out/clean/train.jsonl" --eval_datasets "$out/clean/eval.jsonl" \
    --vocab_size $vocabulary --output_dir "$out/tokenizer"

# shellcheck disable=SC2046  # resume prints two words or none
stage "4/7 pretrain a language model from random weights" \
    pretrain_clm --model_name_or_path "$here/architectures/$model.json" --tokenizer_name_or_path "$out/tokenizer" \
    --datasets "$out/clean/train.jsonl" --eval_datasets "$out/clean/eval.jsonl" --block_size $block \
    --per_device_train_batch_size $batch --per_device_eval_batch_size $batch --max_steps $steps --warmup_steps $warmup \
    --learning_rate $rate --eval_steps $every --save_steps $every --logging_steps 10 \
    --output_dir "$out/pretrain" $(resume pretrain)

stage "5/7 evaluate it on stories that it has not seen" \
    evaluate_lm --model_name_or_path "$out/pretrain" --eval_datasets "$out/clean/eval.jsonl" --max_rows $rows \
    --output_dir "$out/evaluate"

stage "6/7 let it write" \
    generate --model_name_or_path "$out/pretrain" --output_dir "$out/generate" \
    --prompts "Once upon a time" "There was a brave fox" "It was a rainy morning" "Rosie the mouse was very shy"

runs=(corpus clean tokenizer pretrain evaluate generate)
if [ -n "${STORY_ALIGN:-}" ]; then
    # shellcheck disable=SC2046
    stage "align 1/5: teach it to follow instructions" \
        sft --model_name_or_path "$out/pretrain" --datasets "$out/corpus/instructions.jsonl" --eval_fraction 0.05 \
        --max_length 512 --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --activation_checkpointing false \
        --max_steps $sft_steps --warmup_steps 10 --learning_rate 1e-3 --logging_steps 10 --eval_steps $sft_steps \
        --save_steps $sft_steps --answer_rows 32 --answer_tokens $answer_tokens --output_dir "$out/sft" $(resume sft)

    stage "align 2/5: let it answer, and judge the answers by the gold rule, with a tenth of the labels wrong" \
        preferences --model_name_or_path "$answerer" --demo_prompts $prompts --max_new_tokens $answer_tokens \
        --label_noise 0.1 --output_dir "$out/preferences"

    # shellcheck disable=SC2046
    stage "align 3/5: learn a reward model from these preferences" \
        reward --model_name_or_path "$out/sft" --datasets "$out/preferences/train.jsonl" \
        --eval_datasets "$out/preferences/eval.jsonl" --max_length 512 --per_device_train_batch_size 16 \
        --gradient_accumulation_steps 1 --max_steps $reward_steps --warmup_steps 5 --learning_rate 5e-4 \
        --eval_steps $reward_steps --save_steps $reward_steps --output_dir "$out/reward" $(resume reward)

    # shellcheck disable=SC2046
    stage "align 4/5: train the model against the reward model with RLOO" \
        rloo --model_name_or_path "$out/sft" --reward_model "$out/reward" --datasets "$out/corpus/instructions.jsonl" \
        --max_rows 1000 --eval_fraction 0.05 --per_device_train_batch_size $answers --per_device_eval_batch_size $answers \
        --gradient_accumulation_steps 1 --max_steps $rloo_steps --warmup_steps 2 --learning_rate 1e-4 \
        --activation_checkpointing false --bf16 false --max_completion_length $answer_tokens --eval_steps $rloo_steps --save_steps $rloo_steps \
        --output_dir "$out/rloo" $(resume rloo)

    stage "align 5/5: compare it with the model before, by the gold rule" \
        win_rate --model_name_or_path "$out/rloo" --reference_model "$out/sft" --datasets "$out/corpus/instructions.jsonl" \
        --eval_fraction 0 --max_rows $compared --max_new_tokens $answer_tokens --output_dir "$out/win_rate"
    runs+=(sft preferences reward rloo win_rate)
fi

stage "7/7 put it all on one page" \
    report --runs "${runs[@]/#/$out/}" --output_dir "$out/report"

echo "
The story took $((SECONDS - began)) s. Open $out/report/report.html in a browser."
