"""TRL's SFTTrainer as a way to K independent runs; TRL must be installed.

In: a base, a cell and settings. Out: a way that takes optimizer steps.
One run is timed, between the callbacks at the beginning and the end of each optimizer step, and counted K times. No
gradient checkpointing, which TRL has on by default and no other way has; else TRL's defaults.
"""

import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from softspec.app.bench.training.material import adapter_states, random_examples
from softspec.app.bench.training.peft_ways import peft_model
from softspec.app.bench.training.settings import MICRO_BATCHES, BenchSettings, Cell
from softspec.app.bench.training.ways import LEARNING_RATE, MAX_GRAD_NORM, Timing, Way, synchronize
from softspec.train.members.base import load_base


class Stopwatch(TrainerCallback):
    """A callback that notes the seconds of each optimizer step."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.step_s.append(time.perf_counter() - self._started)


class Trl(Way):
    """`trl`: one of K equal runs, on pre-tokenised data with a completion mask."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings) -> None:
        self._members = cell.members
        states = adapter_states(base, cell, settings)[:1]
        self.model = peft_model(load_base(base), ["default"], states, settings)
        rows = [
            {
                "input_ids": [*example.prompt_ids, *example.completion_ids],
                "completion_mask": [0] * len(example.prompt_ids) + [1] * len(example.completion_ids),
            }
            for example in random_examples(base, cell, settings, settings.examples_per_step)
        ]
        disable_progress_bars()
        self._stopwatch = Stopwatch()
        # The trainer wants a folder to begin with; nothing is saved.
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=settings.batch,
                gradient_accumulation_steps=MICRO_BATCHES,
                learning_rate=LEARNING_RATE,
                max_grad_norm=MAX_GRAD_NORM,
                max_length=cell.prompt_tokens + cell.completion_tokens,
                completion_only_loss=True,
                gradient_checkpointing=False,
                bf16=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            )
            self._trainer = SFTTrainer(
                self.model,
                arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=_unused_tokenizer(),
                callbacks=[self._stopwatch],
            )
        self._trainer.remove_callback(PrinterCallback)

    def run(self, steps: int) -> Timing:
        self._stopwatch.step_s.clear()
        self._trainer.args.max_steps = steps
        self._trainer.train()
        return Timing(self._members * statistics.fmean(self._stopwatch.step_s))


def _unused_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer because the trainer asks for one; the data are token ids already."""
    vocabulary = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<pad>")
