"""What other trainers call their keys, and what is to be written here instead.

In: a key that is not ours. Out: words about it. The keys are those of TRL, the transformers trainer, axolotl,
LLaMA-Factory, Unsloth and torchtune. Knows none of the values.
"""

import difflib
from collections.abc import Mapping

RENAMED = {
    "base_model": "model_name_or_path model_name model model_id model_path pretrained_model_name_or_path "
    "base_model_name_or_path hf_model base checkpoint ",
    "model_revision": "revision revision_of_model base_model_revision",
    "dtype": "torch_dtype model_dtype precision mixed_precision bf16 fp16 float16 bfloat16 half_precision",
    "train_file": "dataset_name datasets dataset train_dataset train_data data data_path data_files dataset_path "
    "dataset_dir training_data train_path training_file dataset_mixer",
    "eval_file": "eval_dataset eval_data validation_file validation_data val_file val_data val_dataset test_file "
    "test_data test_dataset test_datasets eval_files valid_file validation_dataset dev_file do_eval eval_path",
    "dataset_config": "dataset_config_name config_name dataset_subset subset",
    "dataset_train_split": "train_split split dataset_split",
    "dataset_test_split": "eval_split test_split dataset_eval_split validation_split dataset_validation_split",
    "output_dir": "out_dir output save_dir output_path out output_folder save_path model_output_dir",
    "name": "run_name served_model_name model_alias experiment_name",
    "max_length": "max_seq_length max_seq_len sequence_len sequence_length seq_len seq_length cutoff_len "
    "model_max_length max_tokens context_length block_size max_len",
    "objective": "stage rl training_type train_type trainer trainer_type task method algorithm",
    "beta": "dpo_beta pref_beta rl_beta",
    "num_members": "k members num_adapters n_members num_experts n_experts num_models ensemble_size num_particles "
    "n_adapters adapters",
    "responsibility_floor": "load_balancing load_balancing_loss aux_loss_coef router_aux_loss_coef",
    "b_init_std": "init_lora_weights init_lora_b peft_init_lora_weights lora_init",
    "lora_r": "r rank lora_rank lora_dim lora_attn_dim",
    "lora_alpha": "alpha_lora lora_scaling lora_scale",
    "target_modules": "lora_target_modules lora_target lora_target_linear lora_modules lora_target_module lora_targets "
    "lora_attn_modules apply_lora_to_mlp",
    "layers_to_transform": "lora_layers_to_transform peft_layers_to_transform lora_layers num_layers target_layers "
    "layers_pattern peft_layers_pattern",
    "learning_rate": "lr max_lr peak_lr base_lr initial_learning_rate",
    "lr_scheduler_type": "lr_scheduler scheduler lr_schedule scheduler_type lr_decay_style",
    "warmup_ratio": "warmup_steps num_warmup_steps warmup warmup_iters warmup_fraction lr_warmup_steps",
    "weight_decay": "wd decay l2",
    "max_grad_norm": "gradient_clipping grad_clip clip_grad_norm max_norm clip_grad gradient_clip_val grad_norm "
    "gradient_clip max_gradient_norm clip_norm",
    "micro_batch_size": "per_device_train_batch_size batch_size train_batch_size per_device_batch_size "
    "per_gpu_train_batch_size per_device_eval_batch_size eval_batch_size micro_batch mbs local_batch_size",
    "gradient_accumulation_steps": "grad_accum grad_accumulation_steps gradient_accumulation accumulate_grad_batches "
    "grad_accum_steps accumulation_steps",
    "gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing enable_activation_checkpointing "
    "gradient_checkpoint",
    "shard_base": "fsdp fsdp_config fsdp_version fsdp_transformer_layer_cls_to_wrap fsdp2 use_fsdp zero_stage",
    "num_epochs": "num_train_epochs epochs n_epochs max_epochs",
    "max_steps": "num_steps steps total_steps max_train_steps num_train_steps train_steps max_iters iters "
    "max_steps_per_epoch",
    "seed": "random_state random_seed data_seed",
    "logging_steps": "log_every log_steps log_interval log_every_n_steps logging_interval logging_strategy "
    "logging_first_step",
    "eval_steps": "eval_every eval_interval evaluation_steps eval_strategy evaluation_strategy evals_per_epoch "
    "eval_frequency run_valid_every_n_steps eval_on_start",
    "save_steps": "save_every save_interval save_strategy saves_per_epoch checkpoint_every checkpointing_steps "
    "checkpoint_interval save_freq",
    "early_stopping_patience": "patience early_stopping load_best_model_at_end metric_for_best_model early_stop",
    "early_stopping_threshold": "min_delta early_stopping_min_delta",
    "report_to": "logger log_with tracker trackers use_wandb use_tensorboard use_mlflow use_swanlab use_comet "
    "wandb wandb_mode metric_logger",
}
"""Key of ours -> what it is called elsewhere, where it does the same or comes nearest."""

FLAGS = {
    "--resume": "resume resume_from_checkpoint auto_resume_from_checkpoints resume_from resume_training "
    "ignore_data_skip",
    "--overwrite": "overwrite overwrite_output_dir force",
}
"""Flag of `softspec train` -> what are keys elsewhere."""

ABSENT = {
    "there is no dropout but lora_dropout, of one member: several differ by their random start and by what the "
    "objective gives them": "dropout attention_dropout attn_dropout hidden_dropout disable_dropout lora_mlp_dropout "
    "peft_dropout",
    "there is no noise on embeddings": "neftune_noise_alpha noisy_embedding_alpha neftune",
    "processes share the examples, and with shard_base the base: torchrun or accelerate launch starts them": ""
    "deepspeed deepspeed_config ddp_find_unused_parameters ddp_timeout "
    "ddp_backend local_rank tensor_parallel_size context_parallel_size sequence_parallel_degree device_map device "
    "num_gpus n_gpu nproc_per_node world_size tp_size accelerator_config",
    "rows are never cut: raise max_length, or leave long ones out with long_rows: drop": ""
    "truncation truncation_mode truncation_side max_prompt_length "
    "max_completion_length max_target_length max_source_length excess_length_strategy overflow_strategy",
    "an example is a row: there is no packing": "packing sample_packing eval_packing eval_sample_packing "
    "packing_strategy pad_to_sequence_len padding_free pad_to_multiple_of group_by_length multipack_real_batches "
    "packed neat_packing length_column_name",
    "the base is frozen and whole, never quantised": "load_in_4bit load_in_8bit bnb_4bit_compute_dtype "
    "bnb_4bit_quant_type bnb_4bit_use_double_quant quantization quantization_bit quantization_config "
    "quantization_method use_bnb bnb_config_kwargs use_4bit use_nested_quant gptq qlora",
    "members are plain LoRA, which PEFT and vLLM both load": "adapter use_peft peft peft_config peft_type lora "
    "finetuning_type lora_bias bias use_dora peft_use_dora use_rslora peft_use_rslora modules_to_save "
    "lora_modules_to_save additional_target freeze_method full_finetuning loraplus_lr_ratio loraplus_lr_embedding "
    "rank_pattern alpha_pattern lora_fan_in_fan_out fan_in_fan_out lora_model_dir adapter_name_or_path lora_on_cpu "
    "loftq_config use_loftq create_new_adapter unfrozen_parameters task_type lora_task_type inference_mode",
    "the optimizer is AdamW with PyTorch's settings": "optim optimizer optim_args optim_target_modules adam_beta1 "
    "adam_beta2 adam_epsilon adam_eps betas adafactor use_adamw fused momentum loss_scale",
    "the learning rate rises to learning_rate and falls to 0, by lr_scheduler_type": "lr_scheduler_kwargs min_lr "
    "min_lr_ratio cosine_min_lr_ratio cosine_constant_lr_ratio lr_decay_steps lr_decay_ratio lr_groups embedding_lr",
    "end and padding tokens and the template are the base's own": "eos_token pad_token bos_token unk_token "
    "special_tokens added_tokens tokens tokenizer tokenizer_name tokenizer_path tokenizer_type tokenizer_config "
    "chat_template chat_template_path chat_template_jinja template prompt_template default_system_message "
    "system_prompt default_system add_eos_token add_bos_token use_fast_tokenizer use_fast resize_vocab "
    "resize_token_embeddings new_special_tokens train_on_eos train_on_eot eot_tokens",
    "only answers are trained, never prompts; train_on says which": ""
    "assistant_only_loss completion_only_loss train_on_inputs "
    "train_on_prompt train_on_responses_only mask_history mask_prompt roles_to_train response_template "
    "instruction_template dataset_text_field text_field text_column input_column prompt_column "
    "field_messages chat_field formatting_func message_field_role message_field_content dataset_kwargs type",
    "no part of train_file is held out: write those rows to a file of their own and name it eval_file": "val_set_size "
    "val_size test_size validation_split_percentage validation_ratio eval_ratio dev_ratio valid_size",
    "a run uses all of its rows in an order that seed decides": "max_samples max_train_samples max_eval_samples "
    "max_examples num_samples shuffle shuffle_dataset shuffle_merged_datasets streaming dataloader_num_workers "
    "dataset_num_proc num_workers num_proc preprocessing_num_workers dataset_prepared_path dataset_processes "
    "dataloader_pin_memory dataloader_drop_last dataloader_prefetch_factor remove_unused_columns skip_prepare_dataset "
    "overwrite_cache use_cache cache_dir buffer_size mix_strategy interleave_probs mixture train_sampling_strategy",
    "curves are in output_dir, and report_to adds trackers with their own environment variables": "logging_dir "
    "tensorboard_dir log_dir wandb_project wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model "
    "mlflow_tracking_uri mlflow_experiment_name comet_project_name log_level plot_loss disable_tqdm project "
    "use_tensorboard_logger log_peak_memory_stats log_completions include_tokens_per_second",
    "nothing is uploaded: output_dir is an ordinary folder": "push_to_hub hub_model_id hub_token hub_strategy "
    "hub_private_repo hub_revision push_dataset_to_hub upload",
    "the newest checkpoint is kept while the run lasts, and the adapters as safetensors": "save_total_limit "
    "save_only_model save_safetensors save_on_each_node save_first_step overwrite_final save_optimizer "
    "include_inputs_for_metrics",
    "code of the base's author is not run": "trust_remote_code remote_code trust_remote_code_model",
    "how the base computes is not a setting": "attn_implementation flash_attention flash_attn sdp_attention "
    "xformers_attention use_flash_attention use_flash_attention_2 flash_attn_implementation torch_compile compile "
    "torch_compile_backend torch_compile_mode use_liger_kernel use_liger liger_kernel liger_rope liger_rms_norm "
    "use_unsloth fast_inference gpu_memory_utilization use_gradient_checkpointing_unsloth "
    "gradient_checkpointing_kwargs tf32 jit_mode_eval use_cpu no_cuda activation_offloading model_init_kwargs "
    "rope_scaling rope_theta router_jitter_noise plugins strict model_type is_llama_derived_model "
    "auto_find_batch_size use_kernels float32_matmul_precision experimental",
    "the reference of objective: dpo is the base with its adapters off, and its loss the likelihood of the labels": ""
    "loss_type loss_weights ref_model ref_model_revision reference_free sync_ref_model ref_model_mixup_alpha "
    "precompute_ref_log_probs precompute_ref_batch_size pref_loss pref_ftx rpo_alpha simpo_gamma orpo_alpha "
    "f_divergence_type ld_alpha discopop_tau model_adapter_name ref_adapter_name generate_during_eval use_weighting "
    "label_smoothing_factor label_pad_token_id desirable_weight undesirable_weight",
    "this command only trains": "do_train do_predict predict_with_generate eval_accumulation_steps eval_metric "
    "compute_metrics prediction_loss_only eval_do_concat_batches num_beams temperature top_p max_new_tokens "
    "benchmark lm_eval do_bench_eval",
}
"""Why a key is not here -> keys of others."""

OURS = {other: ours for ours, others in RENAMED.items() for other in others.split()}
OTHERWISE = {
    other: f"it is the flag {flag}" for flag, others in FLAGS.items() for other in others.split()
} | {other: f"it is no key here: {why}" for why, others in ABSENT.items() for other in others.split()}
CLOSE = 0.75
"""How alike two keys are of which one may be a slip of the other; 1 is equal."""


def suggestion(key: str, ours: Mapping[str, str]) -> str:
    """What to write in place of a key that is none of `ours`, which come with their descriptions."""
    plain = key.strip().strip("-").lower().replace("-", "_")
    if plain == "alpha":
        return "expected 'renyi_alpha' (the objective) or 'lora_alpha' (the adapter scaling)"
    if plain in OURS:
        return f"it is called '{OURS[plain]}' here: {ours[OURS[plain]]}"
    if plain in OTHERWISE:
        return OTHERWISE[plain]
    close = difflib.get_close_matches(plain, [*ours, *OURS, *OTHERWISE], n=1, cutoff=CLOSE)
    if not close:
        return f"expected one of {', '.join(ours)}"
    if close[0] in OTHERWISE:
        return f"if that is '{close[0]}', {OTHERWISE[close[0]]}"
    return f"did you mean '{OURS.get(close[0], close[0])}'?"
