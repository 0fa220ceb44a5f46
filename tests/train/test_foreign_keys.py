"""Keys of other trainers: each leads to ours, or to a word why there is none."""

import pytest

from softspec.train.config import TrainConfig
from softspec.train.foreign_keys import ABSENT, FLAGS, OTHERWISE, OURS, RENAMED, suggestion

KEYS = {name: field.description or "" for name, field in TrainConfig.model_fields.items()}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("sequence_len", "'max_length'"),
        ("max_seq_length", "'max_length'"),
        ("dataset_name", "'train_file'"),
        ("datasets", "'train_file'"),
        ("dataset", "'train_file'"),
        ("train_dataset", "'train_file'"),
        ("eval_dataset", "'eval_file'"),
        ("val_set_size", "name it eval_file"),
        ("peft_dropout", "no key here: there is no dropout but lora_dropout"),
        ("gradient_clipping", "'max_grad_norm'"),
        ("neftune_noise_alpha", "no key here: there is no noise"),
        ("deepspeed", "no key here: processes share"),
        ("fsdp", "'shard_base'"),
        ("truncation", "no key here: rows are never cut"),
        ("logging_dir", "no key here: curves are in output_dir"),
        ("overwrite_output_dir", "the flag --overwrite"),
        ("resume_from_checkpoint", "the flag --resume"),
        ("model_name_or_path", "'base_model'"),
        ("lr", "'learning_rate'"),
        ("r", "'lora_r'"),
        ("lora_rank", "'lora_r'"),
        ("K", "'num_members'"),
        ("num_adapters", "'num_members'"),
        ("bf16", "'dtype'"),
        ("torch_dtype", "'dtype'"),
        ("optim", "the optimizer is AdamW"),
        ("packing", "there is no packing"),
        ("load_in_4bit", "never quantised"),
        ("eos_token", "the base's own"),
        ("chat_template", "the base's own"),
        ("assistant_only_loss", "only answers are trained"),
        ("per_device_train_batch_size", "'micro_batch_size'"),
        ("num_train_epochs", "'num_epochs'"),
        ("lora_target_modules", "'target_modules'"),
        ("warmup_steps", "'warmup_ratio' here: Share of the run"),
        ("dpo_beta", "'beta'"),
        ("run_name", "'name'"),
        ("alpha", "'renyi_alpha' (the objective) or 'lora_alpha'"),
        ("--learning-rate", "did you mean 'learning_rate'"),
        ("Seed", "did you mean 'seed'"),
        ("learning_rates", "did you mean 'learning_rate'"),
        ("lora_droput", "did you mean 'lora_dropout'"),
        ("per_device_train_batchsize", "did you mean 'micro_batch_size'"),
        ("quux", "expected one of base_model, "),
    ],
)
def test_a_key_of_another_trainer_is_understood(key: str, expected: str) -> None:
    assert expected in suggestion(key, KEYS)


def test_every_word_about_a_foreign_key_is_said_once_and_leads_to_a_key_of_ours() -> None:
    spelt = " ".join([*RENAMED.values(), *FLAGS.values(), *ABSENT.values()]).split()

    assert len(spelt) == len(set(spelt)) == len(OURS) + len(OTHERWISE), "a key that is there twice"
    assert set(RENAMED) <= set(KEYS)
    assert not set(spelt) & set(KEYS), "a key of ours that is called foreign"
    assert all(key == key.lower() for key in spelt)
