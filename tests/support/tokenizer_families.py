"""Tokenizers of the families that bases come with, small, trained here on generated text.

In: the name of a family. Out: a fast tokenizer without a chat template, as `AutoTokenizer` would load it. Needs no
network.
"""

import json
import random
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def corpus() -> tuple[str, ...]:
    """Lines of words, numbers, code and marks, from which merges are learnt that cross spaces and line ends."""
    draw = random.Random(0)
    words = [
        "the",
        "answer",
        "is",
        "Yes",
        "No",
        "user",
        "assistant",
        "think",
        "Rome",
        "2+2=4",
        "In",
        "a",
        "naïve",
    ]
    marks = [" ", " ", " ", "\n", "\n\n", ", ", ". ", ": ", "  ", ' "', "(", ")", "<", ">", "|", "="]
    return tuple("".join(draw.choice(words) + draw.choice(marks) for _ in range(40)) for _ in range(300))


def byte_level(
    split: str | None,
    specials: tuple[str, ...],
    bos: str | None = None,
    add_bos: bool = False,
    add_prefix_space: bool = False,
    nfc: bool = False,
    **names: Any,
) -> PreTrainedTokenizerFast:
    """BPE over bytes, as in GPT-2, Llama 3 and Qwen; the first of the specials is the padding.

    Args:
        split: where words are split; as GPT-2 does it when empty.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC() if nfc else None
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        if split is None
        else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in specials])
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(str(bos)))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, pad_token=specials[0], **names)


def sentencepiece(
    prefix: str, specials: tuple[str, ...] = (), rstrip: bool = False, **names: Any
) -> PreTrainedTokenizerFast:
    """BPE over text with a mark for spaces and bytes for what is unknown, as in Llama 2, Mistral, Gemma and Phi-3.

    Args:
        prefix: where a space is put that nobody wrote: before every piece of text (`always`), before the whole text
            (`first`) or nowhere (`never`).
        rstrip: whether special tokens swallow the white space behind them.
    """
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    learnt.train_from_iterator(corpus(), trainer)
    state = json.loads(learnt.to_str())
    learnt_tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    tokens = [*learnt_tokens[:3], *BYTES, *learnt_tokens[3:]]
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    backend = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if prefix == "always":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(
        [AddedToken(each, special=True, normalized=False) for each in ("<unk>", "<s>", "</s>")]
    )
    backend.add_special_tokens(
        [AddedToken(each, special=True, normalized=False, rstrip=rstrip) for each in specials]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **names}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
