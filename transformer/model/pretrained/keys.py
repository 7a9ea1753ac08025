"""The keys of a config.json that no architecture follows. Each has no effect here, or is refused unless it has the only
value that our modules know. A key that no table names is refused as well: the reference implementation may read it, and
then the numbers would differ without a word."""

from typing import Any

# Of every architecture: the only value that our modules know.
NEEDED: dict[str, Any] = {
    "quantization_config": None,
    "auto_map": None,  # the model is code of its own
    "pruned_heads": {},
    "per_layer_config": None,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
}

# Ids of special tokens, and names of classes. No output depends on them; `save` writes what `load` read.
SPECIAL_IDS = tuple(
    f"{name}_token_id" for name in "bos eos pad sep cls mask unk decoder_start forced_bos forced_eos".split()
)
NAMES = ("id2label", "label2id")

_REASONS = {
    "says where the file came from": "transformers_version _name_or_path name_or_path _commit_hash _from_model_config",
    "is the type of the stored weights, which are read in float32": "dtype torch_dtype use_bfloat16",
    "chooses what a call returns": "output_hidden_states output_attentions output_past return_dict use_return_dict "
    "torchscript tie_last_hidden_states",
    "chooses how the same numbers are computed": "use_cache chunk_size_feed_forward gradient_checkpointing "
    "attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal "
    "experts_implementation _experts_implementation _experts_implementation_internal _flash_attn_2_enabled",
    "is of the loss, or of a head that these classes do not have": "problem_type tf_legacy_loss finetuning_task "
    "classifier_dropout num_labels _num_labels",
    "initialises fresh weights": "initializer_range initializer_factor init_std",
    "is of dropout on attention weights in training, where our modules have none": "attn_pdrop "
    "attention_probs_dropout_prob attention_dropout",
    "is of the tokenizer, or of other programs": "tokenizer_class prefix task_specific_params",
    "is an option of decoding, which the caller gives here": "assistant_confidence_threshold assistant_lookbehind "
    "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
    "encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty "
    "force_bos_token_to_be_generated length_penalty max_length min_length no_repeat_ngram_size num_assistant_tokens "
    "num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values "
    "repetition_penalty return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p",
}
# Of every architecture: key -> why it has no effect here.
UNUSED = {key: reason for reason, keys in _REASONS.items() for key in keys.split()}
