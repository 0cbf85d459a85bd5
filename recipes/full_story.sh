#!/usr/bin/env bash
# From raw text to a language model that does as it is asked, on a CPU in minutes: corpus, clean,
# tokenizer, pretrain, evaluate, generate, then sft, preferences, reward, rloo and ppo on one
# budget, the win rates by a rule that training never saw, a diagnosis of the chain, a model card,
# and a page of all stages.
#
#     bash recipes/full_story.sh [FOLDER]  # default runs/story; STORY_SIZE=tiny takes a minute
#
# Each stage writes its own folder with a run.json. A stage that has finished is not run again, so
# an interrupted story continues where it stopped. docs/story.md shows it with figures.
set -euo pipefail
out=${1:-runs/story}
# glibc gives big buffers back to the system after every step and asks for them again; kept, steps
# are a quarter faster.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

model=llama-1m
case "${STORY_SIZE:-demo}" in
demo)
    stories=24000 tasks=16000 vocabulary=2048 block=256 batch=8 rows=200
    steps=2000 warmup=100 every=500 sft_steps=1300 sft_warmup=20 sft_decay=300 sft_every=650
    answers=128 answer_tokens=80 reward_steps=160 reward_warmup=10 rloo_steps=22 compared=0.25
    ppo=(--critic_warmup_rollouts 2 --warmup_steps 24)
    answerer=(--model_name_or_path "$out/sft" --datasets "$out/asked/instructions.jsonl")
    judge=()  # the gold rule
    weights=(12 10 8 110 8 8 80 8 8 30 30 60 60 16 16 6 7 7)
    ;;
tiny)
    stories=400 tasks=400 vocabulary=512 block=64 batch=8 rows=20
    steps=12 warmup=2 every=6 sft_steps=2 sft_warmup=0 sft_decay=1 sft_every=2
    answers=16 answer_tokens=24 reward_steps=2 reward_warmup=0 rloo_steps=2 compared=0.05
    ppo=(--warmup_steps 0)
    # a model after so few steps has no answers to compare: the demo's generator has
    answerer=(--model_name_or_path "" --demo_prompts 8)
    # nor does it obey a single task: the gold rule would find all its answers equal
    judge=(--reward_model "$out/reward")
    weights=(6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6)
    ;;
*)
    echo "STORY_SIZE is demo or tiny, got ${STORY_SIZE}" >&2
    exit 1
    ;;
esac

# All stages are forks of one interpreter that has imported the libraries, which takes some seconds
# of CPU each time. Until it is ready, where it cannot be, and with WARM=false, a stage starts an
# interpreter of its own and does the same.
if [ "${WARM:-true}" = true ]; then
    warm=$(mktemp -d)
    export HFSTACK_WARM=$warm/socket
    hfstack warm "$HFSTACK_WARM" pretrain_clm sft reward ppo rloo preferences evaluate_lm generate \
        win_rate diagnose publish clean tokenizer demo_corpus report &
    warm_pid=$!
    trap 'kill $warm_pid 2>/dev/null || true
        wait $warm_pid 2>/dev/null || true
        rm -rf "$warm"' EXIT
fi

# The weights guess how many seconds each stage takes. Those that are done correct the guess, because
# they show how fast this machine is.
began=$SECONDS number=0 runs=() weighed=0 spent=0
span() { # seconds
    if [ "$1" -ge 90 ]; then
        printf '%d minutes' "$((($1 + 30) / 60))"
    else
        printf '%d seconds' "$(($1 > 5 ? $1 : 5))"
    fi
}

stage() { # folder, what it is for, recipe, options
    local weight=${weights[$number]} started=$SECONDS
    local about=$weight
    number=$((number + 1))
    if [ "$weighed" -gt 0 ]; then
        about=$((weight * spent / weighed))
    fi
    printf '\n== stage %d of %d, about %s: %s\n' "$number" "${#weights[@]}" "$(span "$about")" "$2"
    runs+=("$out/$1")
    local folder=$1 recipe=$3 resume=()
    shift 3
    # resume an interrupted stage from its last checkpoint
    if compgen -G "$out/$folder/checkpoint-*" >/dev/null; then
        resume=(--resume_from_checkpoint last)
    fi
    hfstack run "$recipe" --output_dir "$out/$folder" "$@" "${resume[@]}"
    # A stage that had finished before says nothing about this machine.
    if [ "$((SECONDS - started))" -gt 2 ]; then
        weighed=$((weighed + weight)) spent=$((spent + SECONDS - started))
    fi
}

stage corpus "generate stories with planted noise, and tasks with good and careless answers" \
    demo_corpus --stories $stories --instructions $tasks --task beginning --careless_share 0.5

stage clean "clean it: repair, filter, mask, remove duplicates" \
    clean --datasets "$out/corpus/raw.jsonl" --eval_fraction 0.02

stage tokenizer "train a tokenizer on what is left" \
    tokenizer --datasets "$out/clean/train.jsonl" --eval_datasets "$out/clean/eval.jsonl" \
    --vocab_size $vocabulary

stage pretrain "pretrain a language model from random weights" \
    pretrain_clm --model_name_or_path "$model.json" \
    --tokenizer_name_or_path "$out/tokenizer" --datasets "$out/clean/train.jsonl" \
    --eval_datasets "$out/clean/eval.jsonl" --block_size $block \
    --per_device_train_batch_size $batch --per_device_eval_batch_size 32 --max_steps $steps \
    --warmup_steps $warmup --learning_rate 3e-3 --eval_steps $every --save_steps $every \
    --logging_steps 20

stage evaluate "evaluate it on stories that it has not seen" \
    evaluate_lm --model_name_or_path "$out/pretrain" --eval_datasets "$out/clean/eval.jsonl" \
    --max_rows $rows

stage generate "let it continue beginnings" \
    generate --model_name_or_path "$out/pretrain" \
    --prompts "Once upon a time" "There was a brave fox" "It was a rainy morning" \
    "Rosie the mouse was very shy"

stage sft "teach it to do as it is asked" \
    sft --model_name_or_path "$out/pretrain" --datasets "$out/corpus/instructions.jsonl" \
    --eval_fraction 0.02 --max_length 256 --per_device_train_batch_size 4 \
    --per_device_eval_batch_size 8 --gradient_accumulation_steps 1 \
    --activation_checkpointing false --max_steps $sft_steps --warmup_steps $sft_warmup \
    --learning_rate 2e-3 --lr_scheduler_type warmup_stable_decay \
    --lr_scheduler_kwargs "{\"num_decay_steps\": $sft_decay}" --logging_steps 20 \
    --eval_steps $sft_every --save_steps $sft_every --answer_rows 32 \
    --answer_tokens $answer_tokens

stage prompts "generate tasks to which it was taught no answers" \
    demo_corpus --seed 1 --stories 1 --sentiment 0 --instructions 1600 --task beginning

stage asked "and others, for preferences alone" \
    demo_corpus --seed 2 --stories 1 --sentiment 0 --instructions 400 --task beginning

stage preferences "answer these, and judge them by the gold rule, a tenth of the labels wrong" \
    preferences "${answerer[@]}" --max_new_tokens $answer_tokens --label_noise 0.1

stage reward "train a reward model on these preferences" \
    reward --model_name_or_path "$out/sft" --datasets "$out/preferences/train.jsonl" \
    --eval_datasets "$out/preferences/eval.jsonl" --max_length 512 \
    --per_device_train_batch_size 16 --gradient_accumulation_steps 1 \
    --activation_checkpointing false --max_steps $reward_steps --warmup_steps $reward_warmup \
    --learning_rate 1e-3 --lr_scheduler_type cosine --eval_steps $reward_steps \
    --save_steps $reward_steps

stage rloo "train the model against the reward model" \
    rloo --model_name_or_path "$out/sft" --reward_model "$out/reward" \
    --datasets "$out/prompts/instructions.jsonl" --eval_fraction $compared \
    --per_device_train_batch_size $answers --per_device_eval_batch_size $answers \
    --num_generations 8 --num_generations_eval 2 --gradient_accumulation_steps 1 \
    --max_steps $rloo_steps --warmup_steps 2 --learning_rate 6e-4 --kl_coef 0.1 \
    --max_tokens_per_microbatch 1000000 --activation_checkpointing false --bf16 false \
    --max_completion_length $answer_tokens --eval_steps $rloo_steps --save_steps $rloo_steps

stage ppo "train the same model with PPO on as many answers" \
    ppo --model_name_or_path "$out/sft" --reward_model "$out/reward" \
    --datasets "$out/prompts/instructions.jsonl" --eval_fraction $compared \
    --per_device_train_batch_size $answers --per_device_eval_batch_size $answers \
    --gradient_accumulation_steps 1 --num_mini_batches 1 --num_ppo_epochs 4 \
    --total_episodes $((answers * rloo_steps)) --learning_rate 4e-4 --critic_learning_rate 1e-3 \
    --lr_scheduler_type constant_with_warmup "${ppo[@]}" --kl_coef 0.1 --lam 1.0 \
    --missing_eos_penalty 0 --max_tokens_per_microbatch 1000000 --bf16 false \
    --max_completion_length $answer_tokens --logging_steps 4 --eval_steps $((4 * rloo_steps)) \
    --save_steps $((4 * rloo_steps))

for trained in rloo ppo; do
    stage win_rate_$trained "compare $trained with its start by the gold rule, on unseen tasks" \
        win_rate --model_name_or_path "$out/$trained" --reference_model "$out/sft" \
        --eval_fraction $compared --datasets "$out/prompts/instructions.jsonl" \
        --max_new_tokens $answer_tokens --temperature 1 --batch_size 64 "${judge[@]}"
done

stage diagnosis "find the weak link of the chain" \
    diagnose --runs "$out/sft" "$out/preferences" "$out/reward" "$out/ppo" "$out/win_rate_ppo"

stage publish "write the card of the model, and what a push would send" \
    publish --run "$out/ppo" --dry_run true

stage report "show all stages on one page" \
    report --runs "${runs[@]}"

printf '\nThe story took %d s. Open %s in a browser.\n' \
    "$((SECONDS - began))" "$out/report/report.html"
printf 'Talk to the model: hfstack chat %s\n' "$out/ppo"
