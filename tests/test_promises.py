"""Each sentence of two pages that promise much, and the test that holds the code to it.

The tables below name a file, its tests, and under each the beginnings of the sentences and rows
that it checks. A sentence that no beginning fits, a beginning of no sentence, and a test that is
not there fail.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# what leads to the next sentence, or says what was done, promises nothing
LEADS = "-"

DATA = """
-
    A recipe's YAML is an example with data of its own.
    Held-out rows may stand inside longer train rows
    All this is about the columns that the recipe reads.
    A row may read well and still be none of its task
    CPU seconds for 270000 rows
    row: read and check
    row: read, check and keep
    row: second run
    row: `datasets.load_dataset("json")`
    row: its second run
    CPU seconds for 3 MB of stories
    The same thing in other words is not found.
    Images and audio
tests/data/test_data_page.py
  test_the_options_are_those_of_every_recipe
    Every recipe that trains takes the same options
    row: `--datasets`
    row: `--text_column`
  test_code_beside_data_is_never_run
    Code of a Hub dataset is never run.
  test_few_held_out_rows_are_warned_of
    Fewer than 20 held-out rows
  test_the_suffixes_are_those_that_are_read
    Each may end in
  test_the_message_of_a_bad_row_is_the_one_of_the_page
    row: bad JSON
    row: mixed types
    row: a misspelled key
    row: a missing key
    row: a key twice in one object
    row: a ragged row
    row: the header among the rows
    row: not UTF-8
    row: half of a surrogate pair
    row: a number that 64 bits cannot hold
    row: a row of more than 64 MiB
    row: deep nesting
  test_what_ends_a_run_whatever_is_done_with_bad_rows
    These end the run whatever `on_bad_row` is
tests/data/test_sources.py
  test_eval_datasets_are_used_whole_and_kept_out_of_train
    row: `--eval_datasets`
    With `eval_datasets`, train rows whose text
    The same text is never on both sides.
  test_what_is_held_out_by_default_has_a_floor_on_small_data
    row: `--eval_fraction`
  test_fraction_is_held_out_the_same_way_every_time
    row: `--split_seed`
  test_streams
    row: `--streaming`
    `--streaming` keeps nothing
    Only `pretrain_clm`, `pretrain_mlm`
  test_wrong_settings
    It needs `eval_datasets`
tests/data/reading/test_rows.py
  test_max_rows_counts_good_rows
    row: `--max_rows`
  test_a_row_that_is_too_large_is_one_bad_row
    row: `--max_row_mib`
  test_skip_counts_by_reason_and_never_drops_everything
    row: `--on_bad_row`
    row: `fail`
    row: `skip`
    When all rows of a dataset are bad
  test_csv_numbers
    Numbers are looked for
    Then an empty cell is null
  test_several_files_are_one_source
    The files of a glob or a folder
  test_row_unlike_the_first_rows
    Rows are checked against each other.
    The first 100 rows determine the keys
  test_empty_file
    So does a dataset without a row.
    An empty file among others
  test_integers_and_floats_may_share_a_column
    Not refused: integers and floats
  test_key_order_does_not_matter_and_types_inside_do
    Objects inside a column may lack keys
  test_quarantine_keeps_file_line_reason_and_raw_text
    row: `quarantine`
  test_odd_first_row_is_the_bad_one_not_all_others
    When the first row differs from the others
tests/data/reading/test_formats.py
  test_txt_documents
    row: `--document`
    row: `.txt`
  test_jsonl_keeps_true_line_numbers
    row: `.jsonl`, `.ndjson`
  test_json_array_is_read_in_chunks_with_lines
    row: `.json`
  test_nan_in_parquet_is_null
    In a parquet file nan is null
tests/data/test_contamination.py
  test_a_sample_is_read_by_default_and_everything_when_asked
    row: `--check_contamination`
    By default evenly spaced train rows
    `--check_contamination true` compares all of them
  test_what_a_run_reads_is_compared_and_recorded
    Every run that has both looks for it
    Rows that are streamed are not compared.
  test_planted_rows_are_found_whatever_case_and_punctuation
    As `clean` compares texts
  test_short_rows_chinese_and_what_many_rows_share
    Shorter rows are not compared
tests/data/reading/test_files.py
  test_local_looking_paths
    A path is local when it exists
  test_hub_ids_do_not_look_local
    Anything else is a Hub id.
  test_tar_archives_are_refused_with_the_way_out
    Tar archives are refused
tests/test_data_settings.py
  test_every_yaml_with_data_of_its_own_marks_what_belongs_to_it
    What describes these data is marked in it:
  test_what_describes_the_examples_data_does_not_touch_other_data
    With `--datasets mine.jsonl` such a setting
  test_what_was_given_or_fits_stays
    What the command line gives counts in any case.
  test_a_copied_yaml_behaves_like_the_shipped_one
    In a YAML of your own the mark works the same way
tests/demo/test_rules.py
  test_the_rule_refuses_prompts_that_it_cannot_read
    The demo's judge and reward
tests/tasks/rl/test_metrics.py
  test_a_first_evaluation_without_spread_stops_the_run
    A run stops when its first evaluation
tests/training/test_callbacks.py
  test_a_warm_up_longer_than_half_of_the_steps_is_warned_of
    So is a warm-up
tests/data/reading/test_tables.py
  test_a_csv_keeps_its_quoting
    row: `.csv`
  test_a_quote_in_a_tsv_is_a_character_of_the_text
    row: `.tsv`
tests/data/reading/test_parquet.py
  test_text_that_is_marked_as_bytes_decimals_and_maps
    row: `.parquet`
  test_a_row_larger_than_the_limit_is_a_bad_one
    A row above `--max_row_mib`
tests/data/reading/test_arrow.py
  test_rows_come_out_as_they_went_in
    row: `.arrow`, `.feather`
tests/data/reading/test_conll.py
  test_sentences
    row: `.conll`, and `.txt` that shows it
  test_universal_dependencies
    row: `.conllu`
tests/data/reading/test_parallel.py
  test_files_named_one_by_one_are_rows_of_both
    row: `train.en` beside `train.de`
  test_a_glob_and_a_folder_by_split
    Parallel text is named file by file
  test_other_names_of_the_sides_and_compressed_files
    `train.source` and `train.target`
  test_other_numbers_of_lines_are_refused_before_the_first_row
    The files need the same number of lines
  test_one_language_alone_is_lines_to_translate
    `test.en` alone
tests/data/reading/test_folders.py
  test_an_archive_is_read_as_its_folder_is
    row: `.zip`
  test_folder_is_read_with_its_subfolders_without_hidden_files
    A folder is read with its subfolders.
  test_folder_with_split_names_never_mixes_test_into_train
    When its folders or files carry split names
  test_other_spellings_of_splits_are_not_trained_on
    `testset`, `dev2`, `tst` and `holdout`
  test_folders_of_splits_and_classes
    `{path: aclImdb, split: test}` is the other split.
    When these documents are in folders of their own
    `pos`.
    Files of the split beside such folders
  test_folder_of_two_formats_or_of_none_is_refused
    A folder that mixes formats is refused.
  test_a_folder_of_texts_is_a_document_a_file
    A folder of several `.txt` files
tests/data/test_hub.py
  test_a_saved_dictionary_is_read_by_split
    row: a folder of `save_to_disk`
  test_a_published_dataset_is_converted_as_a_file_of_it_is
    These are recognised by their keys
tests/data/reading/test_opening.py
  test_byte_order_marks
    Text is UTF-8
  test_other_unicode_is_read_by_its_byte_order_mark
    UTF-16 and UTF-32 are read
  test_a_bomb_is_not_unpacked
    A compressed file that unpacks
  test_zst_is_read_in_constant_memory_and_small_frames_in_linear_time
    All are read in constant memory
tests/data/test_messy_files.py
  test_messy_files
    Lines end with
    The cells of a csv or tsv are text
    `007`, `3.50`, `NA`
  test_bad_rows_are_named_by_their_lines_after_the_split
    `classify`, `tag`, `answer`, `seq2seq`
tests/data/test_splitting.py
  test_mixture_keeps_common_columns_and_says_what_it_leaves_out
    Files with other columns
  test_equal_weights_of_one_take_every_row
    With all weights 1
  test_weights_give_exact_shares_without_repeats
    Otherwise weights are shares
    No row is repeated
    The log says what was used:
  test_split_is_exact_and_depends_on_seed_and_text_alone
    Held-out rows are those with the smallest hash
  test_train_rows_that_are_in_eval_are_left_out
    "Text" is the text column
  test_empty_side_is_refused
    Fewer rows than `eval_fraction` needs
  test_interleave_follows_weights_and_stops_with_the_first_that_is_used_up
    A weighted mixture is sampled at random
tests/data/reading/test_layouts.py
  test_squad
    row: SQuAD 1 and 2, CMRC
  test_cmrc_in_its_first_form
    row: CMRC 2018 in its first form
  test_hh_dialogues_become_conversations
    row: hh-rlhf
  test_shp_labels_say_which_answer_is_better
    row: SHP
  test_pairs_and_thumbs_of_llama_factory
    row: LLaMA-Factory's pairs
    row: LLaMA-Factory's thumbs
  test_published_questions_without_answers_get_no_column_of_answers
    Questions without `answers`
tests/data/reading/test_message_trees.py
  test_the_best_replies_are_one_conversation
    row: OpenAssistant
  test_ranked_replies_are_pairs
    row: |
  test_rows_of_other_recipes_stay_messages
    "Preferences" are the recipes that read pairs
  test_what_is_wrong_is_named_by_its_line
    Of OpenAssistant, messages that were deleted
tests/data/reading/test_unread_columns.py
  test_values_that_no_column_can_hold_where_it_is_read
    What another column holds stops nothing
  test_a_column_that_fits_a_table_stays
    One that is alike in all rows stays.
tests/data/test_bad_rows.py
  test_bad_rows_are_refused_or_left_out
    Under `skip` and `quarantine`
    `tag`, `answer`, `seq2seq`, `embed` and the recipes
tests/recipes/test_evaluate_lm.py
  test_rows_are_looked_for_in_training_text
    A finished model is checked by
tests/recipes/test_clean.py
  test_decontaminates
    To leave contaminated documents out
tests/data/reading/test_cache.py
  test_second_run_reads_nothing_and_a_changed_file_is_read_again
    The checked rows of local files
  test_report_and_quarantine_are_repeated_from_the_cache
    What the first read reported
  test_a_damaged_cache_is_made_again
    A folder that is deleted or damaged
"""

PREFLIGHT = """
-
    Some mistakes raise no error
    What a causal model is trained on is proved
    Two kinds of settings are refused there too
    The measured rules found problems
    `hfstack/training/unread_options.py` lists them
tests/training/test_checks.py
  test_preflight_logs_one_line_and_refuses_with_every_fault
    Each has a rule of its own
    Each rule has a test that plants
  test_no_double_bos
    row: `no_double_bos`
  test_some_label_is_scored
    row: `some_label_is_scored`
  test_labels_in_range
    row: `labels_in_range`
  test_accumulation_keeps_loss
    row: `accumulation_keeps_loss`
  test_labels_reach_eos
    row: `labels_reach_eos`
  test_template_marks_generation
    row: `template_marks_generation`
  test_every_turn_is_rendered
    row: `every_turn_is_rendered`
  test_pad_is_not_eos
    row: `pad_is_not_eos`
  test_prompts_fit_context
    row: `prompts_fit_context`
  test_chosen_differs_from_rejected
    row: `chosen_differs_from_rejected`
  test_head_is_saved
    row: `head_is_saved`
    `head_is_saved` if the checkpoint
  test_train_and_eval_are_disjoint
    row: `train_and_eval_are_disjoint`
tests/training/test_preflight.py
  test_every_recipe_that_trains_goes_through_the_door
    Every recipe that trains calls one function
  test_an_id_without_an_embedding_is_refused
    row: `embedding_covers_tokenizer`
  test_weights_of_16_bits_are_not_trained
    **Weights of 16 bits that are trained.**
    `--dtype float32` (the default)
    DeepSpeed, and FSDP2
  test_the_table_names_the_recipes_that_ask_each_rule
    A test compares the table with the code
  test_a_model_that_averages_over_its_part_of_the_batch_is_refused
    `accumulation_keeps_loss` is checked with
  test_an_encoder_that_reads_padding_is_named
    A warning names an encoder
  test_held_out_rows_that_are_trained_on_are_counted
    answer, classify, pretrain_clm
  test_the_page_says_how_much_is_checked_and_what_is_only_warned_of
    The first 1,000 rows are checked
tests/training/test_next_token.py
  test_a_model_that_reads_ahead_is_refused
    its logits do not depend on later tokens
    XLNet's and CPM-Ant's do
  test_the_logged_loss_is_the_mean_over_what_follows
    its loss leaves out the first label
    Where a family's loss scores each token
  test_trls_head_is_kept_where_it_gives_the_models_logits
    TRL's trainers, which multiply
  test_bert_is_scored_by_its_own_logits
    They do not for BERT
tests/training/test_unread_options.py
  test_refused
    **Options of upstream
tests/tokens/test_rendering.py
  test_all_that_is_rendered_is_found_whatever_the_template_trims_or_quotes
    `every_turn_is_rendered` renders
tests/tasks/rl/test_prompts.py
  test_prompts_that_leave_no_room_are_a_problem
    Some recipes have a rule of their own
tests/data/test_splitting.py
  test_copies_of_a_text_stay_on_one_side
    `--eval_fraction` never puts
"""


def sentences(page: str) -> Iterator[str]:
    """Yield the sentences and the rows of a page; a row begins with `row: `."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    text = re.sub(r"(?m)^#.*$", "", text)
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip().splitlines()
        if block.strip().startswith("|"):
            yield from (f"row: {line.strip('|').strip()}" for line in lines[2:])
            continue
        for item in re.split(r"(?:^| )- ", " ".join(line.strip() for line in lines)):
            yield from filter(None, re.split(r"(?<=[.:;?!])\s+(?=[A-Z`\"])", item.strip()))


def promises(listed: str) -> dict[str, str]:
    """Return the test of each beginning, as `file::test`."""
    found: dict[str, str] = {}
    file, test = "", ""
    for line in listed.strip().splitlines():
        if line.startswith("    "):
            assert line.strip() not in found, line
            found[line.strip()] = LEADS if file == LEADS else f"{file}::{test}"
        elif line.startswith("  "):
            test = line.strip()
        else:
            file = line
    return found


@pytest.mark.parametrize(
    ("page", "listed"),
    [("data.md", DATA), ("preflight.md", PREFLIGHT)],
    ids=["data", "preflight"],
)
def test_every_sentence_has_its_test(page: str, listed: str) -> None:
    tests, unused = promises(listed), set(promises(listed))
    for sentence in sentences(page):
        fitting = [one for one in tests if sentence.startswith(one)]
        assert len(fitting) == 1, (sentence, fitting)
        unused -= set(fitting)
    assert not unused


@pytest.mark.parametrize("test", sorted({*promises(DATA + PREFLIGHT).values()} - {LEADS}))
def test_the_tests_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
