"""Say which values of each numeric option make sense, for all recipes.

Ours and upstream's: a type lets pass what trains on silently, such as a weight decay of -5, a
dropout of nan, or -2 accumulated batches that end "finished" with no step. The table is checked
when settings are parsed, and printed in the reference. nan and the infinities are outside of every
range.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from hfstack.errors import ConfigError


class Range(NamedTuple):
    """The values of an option: an interval as mathematics writes it, and more."""

    low: float
    high: float
    with_low: bool
    with_high: bool
    also: tuple[float, ...]
    text: str

    @property
    def words(self) -> str:
        """Return the range as a message says it: `at least 1`, `above 0`, `in [0, 1)`."""
        if self.also or math.isfinite(self.high) or not math.isfinite(self.low):
            return self.text if self.also else f"in {self.text}"
        if not self.with_low:
            return f"above {self.low:g}"
        return "0 or above" if self.low == 0 else f"at least {self.low:g}"

    def holds(self, value: float) -> bool:
        """Return whether a value is in the range."""
        if not math.isfinite(value):
            return False
        above = value > self.low or (self.with_low and value == self.low)
        below = value < self.high or (self.with_high and value == self.high)
        return (above and below) or value in self.also


def read_range(text: str) -> Range:
    """Read `[0, 1)`, or `-1 or [1, inf)`."""
    *also, interval = text.split(" or ")
    low, high = interval[1:-1].split(",")
    with_low, with_high = interval[0] == "[", interval[-1] == "]"
    return Range(float(low), float(high), with_low, with_high, tuple(map(float, also)), text)


# Names by their range. What holds only together with another option is checked where both are read.
_TABLE = {
    # shares and probabilities
    "[0, 1)": "adam_beta1 adam_beta2 attention_dropout eval_fraction gold_share "
    "hard_loss_weight label_smoothing_factor lora_dropout negative_margin repeat_share",
    "[0, 1]": "annotator_noise careless_share f_alpha_divergence_coef fim_rate fim_spm_rate gamma "
    "label_noise "
    "lam lam_critic ld_alpha mask_probability min_p "
    "near_duplicate_threshold noise_share position_bias ref_model_mixup_alpha",
    "[0, 0.5]": "label_smoothing",
    "(0, 1]": "soft_label_weight tolerance top_p utilization vllm_gpu_memory_utilization",
    # what is counted: at least one, or none
    "[0, 65535]": "port",
    "[1, inf)": "answers_per_prompt batch_size cluster_memory_gib cluster_tasks cluster_workers "
    "code_k code_samples code_tokens matryoshka_dims "
    "mini_batch_size teacher_top_k top ddp_bucket_cap_mb max_items min_judgements overlap "
    "extraction_tokens pairs_per_prompt "
    "dataloader_prefetch_factor dataset_num_proc ddp_timeout devices demo_prompts "
    "early_stopping_patience eval_accumulation_steps generation_max_length "
    "generation_num_beams gradient_accumulation_steps judge_concurrency kl_horizon lora_alpha "
    "lora_r probe_tokens "
    # lengths and sizes of batches
    "max_answer_tokens max_completion_length max_length max_new_tokens max_pairs_per_prompt "
    "max_prompt_length max_source_length max_target_length max_tokens_per_microbatch "
    "min_frequency minhash_permutations model_max_length n_best "
    "num_generations num_generations_eval num_mini_batches num_ppo_epochs num_samples "
    "pad_to_multiple_of per_device_eval_batch_size per_device_train_batch_size "
    "precompute_ref_batch_size ref_model_sync_steps rollout_batch_size sample_tokens steps "
    "torch_empty_cache_steps total_episodes train_rows vllm_max_model_length "
    "vllm_tensor_parallel_size vocab_size workers",
    "[2, inf)": "block_size",
    "(0, 2048)": "max_row_mib",
    "-1 or [1, inf)": "max_steps",
    "[-1, inf)": "local_rank top_k",
    "[0, inf)": "answer_rows answer_tokens blank_runs code_temperature functions hard_negatives "
    "student_layers critic_warmup_rollouts dataloader_num_workers "
    "draws extraction_texts harness_examples instructions judge_price log_completions max_rows "
    "probe_rows prompt_tokens pseudo_perplexity_texts "
    "rollouts_ahead save_total_limit sentiment stop_token_ids stories stride "
    # sizes of steps, penalties and weights
    "beta center_rewards_coefficient cliprange cliprange_high cliprange_value "
    "critic_learning_rate desirable_weight dual_clip entropy_coef "
    "eval_delay kl_coef learning_rate learning_rate_scale "
    "max_grad_norm money neftune_noise_alpha price_per_device_hour "
    "router_aux_loss_coef sample_temperature temperature tis_cap undesirable_weight "
    "value_head_init_std vf_coef warmup_steps weight_decay",
    "(0, inf)": "adam_epsilon budget_flops budgets device_hours discopop_tau eval_steps "
    "code_seconds soft_label_temperature judge_timeout_s kl_budget "
    "kl_target logging_steps memory_gib num_train_epochs parameters reward_clip "
    "save_steps sizes target_kl window",
    # any number
    "(-inf, inf)": "loss_weights missing_eos_penalty no_answer_threshold padding_value "
    "rating_threshold reward_weights",
    "[0, 4294967296)": "data_seed seed split_seed",
}
RANGES = {name: read_range(text) for text, names in _TABLE.items() for name in names.split()}


def refuse_out_of_range(values: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Raise when a number is outside of its option's range, or is no number.

    Args:
        values: the settings by name; what is no number, and None, is left alone.
        places: where an option's value came from, such as `sft.yaml:12: `, for those of a file.

    Raises:
        ConfigError: names the option, the value, the range and the place.
    """
    for name, value in values.items():
        place = places.get(name, "")
        allowed = RANGES.get(name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            # Larger ones are no size of anything, and no float either.
            if isinstance(number, int) and abs(number) >= 1 << 63:
                digits = len(str(abs(number)))
                raise ConfigError(f"{place}--{name} must be below 2**63, got {digits} digits")
            if allowed is None and not math.isfinite(number):
                raise ConfigError(f"{place}--{name} must be finite, got {number}")
            if allowed is not None and not allowed.holds(number):
                wanted = allowed.words if math.isfinite(number) else f"finite and {allowed.words}"
                raise ConfigError(f"{place}--{name} must be {wanted}, got {number:g}")


def describe_range(name: str) -> str:
    """Return the range of an option as the reference prints it, maybe empty."""
    allowed = RANGES.get(name)
    return "" if allowed is None or allowed.text == "(-inf, inf)" else allowed.words
