"""Names of configuration fields that never change the numbers of an exported network.

They are those of ``transformers``' classes (4.36 to 5.0) and of the published projects' training code, PEFT's, and
those of image processors. Where a reader gives one of them a meaning, it asks for the field and checks it.
"""

from __future__ import annotations

_BOOKKEEPING = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
_valid_processor_keys architectures attn_implementation auto_map auto_mapping base_model_name_or_path cache_dir
chunk_size_feed_forward dtype finetuning_task id2label inference_mode is_decoder is_encoder_decoder label2id
model_name_or_path model_type name_or_path num_labels output_attentions output_hidden_states peft_version problem_type
return_dict revision runtime_config task_specific_params task_type tf_legacy_loss torch_dtype torchscript
transformers_version unsloth_version use_bfloat16 use_cache
"""
_GENERATION = """
bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
_TOKENIZER = """
bos_token_id eos_token_id ignore_index image_token_index llm_model_name_or_path pad_token pad_token_id prefix
sep_token_id tokenizer_class tokenizer_model_max_length tokenizer_name_or_path tokenizer_padding_side
tokenizer_use_fast
"""
_TRAINING = """
attention_dropout attention_probs_dropout_prob classifier_dropout drop_path_rate embd_pdrop freeze_mm_mlp_adapter
freeze_vision_tower gradient_checkpointing group_by_modality_length hidden_dropout hidden_dropout_prob
initializer_factor initializer_range lora_dropout megatron_config megatron_core mm_projector_lr mm_use_im_patch_token
mm_vision_tower_lr non_lora_lr pretrain_mm_mlp_adapter resid_pdrop tune_mm_mlp_adapter tune_type_connector tune_type_llm
tune_type_vision_tower tune_vision_tower_from_layer unfreeze_mm_vision_tower unfreeze_vision_tower use_mm_proj
vision_tower_lr
"""
_BEHIND_THE_USED_LAYERS = """
logit_scale_init_value projection_dim vision_use_head
"""
_TOLD_BY_OTHERS = """
hidden_size mm_hidden_size tie_word_embeddings vision_hidden_size vocab_size
"""
"""Fields determined by the shapes of weights, or by the configuration of the part that has them."""
_OF_WHAT_IS_OFF = """
image_grid_pinpoints num_queries num_resampler_layers qalora_group_size resampler_hidden_size
"""
"""Fields of unsupported features, which readers refuse: pictures cut into several, projectors with queries, adapters"""
_IMAGE_PROCESSOR = """
data_format default_to_square feature_extractor_type image_processor_type image_seq_length input_data_format
processor_class return_tensors
"""
HARMLESS = frozenset(
    " ".join(
        (
            _BOOKKEEPING,
            _GENERATION,
            _TOKENIZER,
            _TRAINING,
            _BEHIND_THE_USED_LAYERS,
            _TOLD_BY_OTHERS,
            _OF_WHAT_IS_OFF,
            _IMAGE_PROCESSOR,
        )
    ).split()
)
