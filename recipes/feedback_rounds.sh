#!/usr/bin/env bash
# Rounds of human feedback: the policy answers, people judge, a reward model learns from the
# judgements of all rounds, PPO trains the last policy against it with the KL to the first, the win
# rate over the first is measured, and the next round begins. METHOD=rloo trains with RLOO, whose KL
# is to the last policy; METHOD=dpo the first policy on the judgements of all rounds, and the reward
# model is only shown.
#
#     bash recipes/feedback_rounds.sh STORY [FOLDER]       # judged in the browser
#     ANNOTATORS=simulated bash recipes/feedback_rounds.sh runs/story runs/rounds
#
# STORY is the folder of full_story.sh, whose sft model is the first policy. ROUNDS (default 3),
# LABELS (judgements of a round, default 40) and SEED are read from the environment; PEOPLE are the
# annotators' names. Each stage is a run: one that has finished is not run again, so an interrupted
# round continues where it stopped. docs/recipes/feedback.md says what to expect.
set -euo pipefail
story=${1:?usage: feedback_rounds.sh STORY [FOLDER]}
out=${2:-runs/rounds}
rounds=${ROUNDS:-3} labels=${LABELS:-40} seed=${SEED:-0} method=${METHOD:-ppo}
case "$method" in
ppo | rloo | dpo) ;;
*)
    echo "METHOD is ppo, rloo or dpo, got $method" >&2
    exit 1
    ;;
esac
read -ra people <<<"${PEOPLE:-me}"
first=$story/sft runs=() stores=()
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

judges=()
if [ "${ANNOTATORS:-people}" = simulated ]; then
    judges=(--simulate true --annotator_noise "${NOISE:-0.1}" --port 0)
fi
case "${SIZE:-demo}" in
demo)
    asked=400 answer_tokens=80 reward_steps=60 answers=128 updates=${UPDATES:-10} compared=0.25
    ;;
tiny)
    asked=60 answer_tokens=24 reward_steps=2 answers=16 updates=1 compared=0.05
    # a model after so few steps obeys nothing: the rule would call all of its answers ties
    judges+=(--position_bias 1)
    ;;
*)
    echo "SIZE is demo or tiny, got ${SIZE}" >&2
    exit 1
    ;;
esac

stage() { # folder, recipe, options
    local folder=$1 recipe=$2 resume=()
    shift 2
    printf '\n== %s: %s\n' "$folder" "$recipe"
    runs+=("$out/$folder")
    if compgen -G "$out/$folder/checkpoint-*" >/dev/null; then
        resume=(--resume_from_checkpoint last)
    fi
    hfstack run "$recipe" --output_dir "$out/$folder" "$@" "${resume[@]}"
}

train_by_ppo() { # round
    stage "ppo$1" ppo --model_name_or_path "$policy" --reference_model "$first" \
        --reward_model "$out/reward$1" --datasets "$story/prompts/instructions.jsonl" \
        --eval_fraction $compared --per_device_train_batch_size $answers --seed "$seed" \
        --per_device_eval_batch_size $answers --gradient_accumulation_steps 1 \
        --num_mini_batches 1 --num_ppo_epochs 4 --total_episodes $((answers * updates)) \
        --learning_rate 4e-4 --critic_learning_rate 1e-3 --warmup_steps 0 \
        --critic_warmup_rollouts 1 --kl_coef 0.1 --lam 1.0 --missing_eos_penalty 0 \
        --max_tokens_per_microbatch 1000000 --bf16 false --max_completion_length $answer_tokens \
        --logging_steps 4 --eval_steps $((4 * updates)) --save_steps $((4 * updates))
}

train_by_rloo() { # round
    stage "rloo$1" rloo --model_name_or_path "$policy" --reward_model "$out/reward$1" \
        --datasets "$story/prompts/instructions.jsonl" --eval_fraction $compared \
        --per_device_train_batch_size $answers --per_device_eval_batch_size $answers \
        --num_generations 8 --num_generations_eval 2 --gradient_accumulation_steps 1 \
        --max_steps $updates --warmup_steps 0 --learning_rate 6e-4 --kl_coef 0.1 --seed "$seed" \
        --max_tokens_per_microbatch 1000000 --activation_checkpointing false --bf16 false \
        --max_completion_length $answer_tokens --eval_steps $updates --save_steps $updates
}

train_by_dpo() { # round
    stage "dpo$1" dpo --model_name_or_path "$first" --datasets "$out/feedback$1/pairs.jsonl" \
        --eval_fraction 0.2 --max_length 512 --per_device_train_batch_size 16 \
        --gradient_accumulation_steps 1 --activation_checkpointing false --seed "$seed" \
        --max_steps $reward_steps --warmup_steps 0 --learning_rate 2e-4 --bf16 false \
        --eval_steps $reward_steps --save_steps $reward_steps
}

# What the win rate is judged by is a rule: people are asked for the same. It is written once,
# because a store knows what its people were told.
guidelines=$out/guidelines.txt
mkdir -p "$out"
if [ ! -f "$guidelines" ]; then
    cat >"$guidelines" <<'TEXT'
Which answer does better what the task asks for?

It asks for the beginning of a story: some sentences about the hero, with the trait, the place and the
thing that it names, and a name for the hero. Those named in the task count, others do not.

An answer is worse if it breaks off, repeats itself or is no English. Capital letters and beauty do not
matter. If both are as good, or as bad, say tie: that is better than a guess.
TEXT
fi

policy=$first
for ((round = 1; round <= rounds; round++)); do
    # each round asks what no other has asked, and none of what the win rate is measured on
    stage "asked$round" demo_corpus --seed $((100 + 10 * seed + round)) --stories 1 --sentiment 0 \
        --instructions $asked --task beginning

    stage "annotate$round" annotate --model_name_or_path "$policy" \
        --datasets "$out/asked$round/instructions.jsonl" --max_items "$labels" \
        --answers_per_prompt 2 --max_new_tokens $answer_tokens --seed "$seed" \
        --open_page "${OPEN_PAGE:-false}" --guidelines "$guidelines" \
        --annotators "${people[@]}" "${judges[@]}"
    stores+=("$out/annotate$round")

    stage "feedback$round" feedback --stores "${stores[@]}"

    stage "reward$round" reward --model_name_or_path "$first" \
        --datasets "$out/feedback$round/pairs.jsonl" --eval_fraction 0.2 --max_length 512 \
        --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --seed "$seed" \
        --activation_checkpointing false --max_steps $reward_steps --warmup_steps 0 \
        --learning_rate 1e-3 --lr_scheduler_type cosine --eval_steps $reward_steps \
        --save_steps $reward_steps

    "train_by_$method" "$round"
    policy=$out/$method$round

    stage "win_rate$round" win_rate --model_name_or_path "$policy" --reference_model "$first" \
        --eval_fraction $compared --datasets "$story/prompts/instructions.jsonl" \
        --max_new_tokens $answer_tokens --temperature 1 --batch_size 64 --seed "$seed"
done

stage report report --runs "${runs[@]}"
python - "$out" "$rounds" <<'PY'
import sys
from hfstack.feedback.rounds import compare_rounds, describe_rounds

folder, rounds = sys.argv[1], int(sys.argv[2])
print(compare_rounds(folder, rounds), describe_rounds(folder, rounds), sep="\n\n")
PY
printf '\nOpen %s in a browser. Talk to the model: hfstack chat %s\n' \
    "$out/report/report.html" "$policy"
printf 'Another round of %d judgements: the same command with ROUNDS=%d before it.\n' \
    "$labels" "$((rounds + 1))"
