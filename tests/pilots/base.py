"""The base of the pilots, which knows the form of an answer only and is so small that members train in a minute.

In: a folder, invented things and a seed. Out: a checkpoint with its tokenizer, one token a word; and ensembles on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softspec.app.demo.facts import COLOURS, Thing, ask, invent_things
from softspec.train.config import TrainConfig, parse_config
from softspec.train.run import train_ensemble

FACTS = 4
"""Things in a question, and colours in an answer."""
TRAINING: dict[str, Any] = {
    "num_members": 4,
    "lora_r": 8,
    "lora_alpha": 16,
    "learning_rate": 5e-3,
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "activation": {"kind": "always"},
    "logging_steps": 100,
}
SPECIAL_TOKENS = ("<pad>", "<end>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_base(folder: Path, things: Sequence[Thing], seed: int, layers: int = 2) -> Path:
    """A small Llama that answers questions of `FACTS` things in the right form but knows nothing of `things`.

    Answers are single colours in the order of the things: the form is also which of them is about which thing.
    """
    new = {thing.name for thing in things}
    familiar = [
        thing for thing in invent_things(seed + 1, agreed=60, conflict=0, unseen=0) if thing.name not in new
    ]
    tokenizer = word_tokenizer([ask([*things, *familiar]), *COLOURS])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,  # names that no adapter moves must differ from the start
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        learn_the_form(model, tokenizer, things, familiar)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learn_the_form(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    things: Sequence[Thing],
    familiar: Sequence[Thing],
    steps: int = 400,
) -> None:
    """Train all weights on questions about both kinds of things.

    `familiar` ones keep their colour, which teaches to look at the thing that is asked for; those of `things` get a new
    one in every answer, so that all colours are equally likely.
    """
    word = tokenizer.convert_tokens_to_ids
    names = torch.tensor(word([thing.name for thing in [*things, *familiar]]))
    known = torch.tensor(word([COLOURS[0]] * len(things) + [thing.colours[0] for thing in familiar]))
    colours = torch.tensor(word(list(COLOURS)))
    turns = [{"role": "user", "content": ask(things[:FACTS])}]
    turns += [{"role": "assistant", "content": ", ".join(COLOURS[:FACTS])}]
    pattern = torch.tensor(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"])
    is_name, is_colour = torch.isin(pattern, names), torch.isin(pattern, colours)
    is_answer = is_colour.cumsum(0) > 0
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        asked = torch.randint(len(names), (32, FACTS))
        drawn = colours[torch.randint(len(colours), asked.shape)]
        ids = pattern.repeat(len(asked), 1)
        ids[:, is_name] = names[asked]
        ids[:, is_colour] = torch.where(asked < len(things), drawn, known[asked])
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids.where(is_answer, -100)).loss.backward()
        optimizer.step()
        schedule.step()


def train_pilot(base: Path, folder: Path, seed: int, **settings: Any) -> TrainConfig:
    """Train an ensemble in `folder` by the road of `softspec train`, with these settings changed."""
    content = {
        **TRAINING,
        **settings,
        "seed": seed,
        "base_model": str(base),
        "train_file": "train.jsonl",
        "output_dir": "-".join(["run", *map(str, settings.values())]),
    }
    config = parse_config(content, source="pilot", folder=folder)
    train_ensemble(config)
    return config


def word_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each word and punctuation mark of `texts`, with a chat template."""
    split = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
