"""Random JSON for the fields of requests that hold numbers: what is usual for a field, and the edges of every number.

In: a random generator. Out: bodies as a server reads them, by field of vLLM's request models. Needs no vLLM.
"""

import json
import random
from typing import Any

INTEGERS = (
    *(0, 1, -1, 2, -2, 5, 19, 20, 21, 100, 319, 320, 321, 1024, 1025),
    *(
        sign * (2**bits) + step
        for sign in (1, -1)
        for bits in (31, 32, 53, 63, 64, 128)
        for step in (-1, 0, 1)
    ),
    10**30,
    10**400,
)
FLOATS = (
    *(
        0.0,
        -0.0,
        0.5,
        1.0,
        2.0,
        -2.0,
        1 - 2**-53,
        1 + 2**-52,
        1 - 2**-24,
        2.0000001,
        0.01,
        0.0099999,
        1e-5,
        1e-6,
    ),
    *(5e-324, 1e-320, 1e-300, 1.4e-45, 1e-40, 1.1754943e-38, 1.1754944e-38, 1e-30, 1e30),
    *(3.4028234e38, 3.5e38, 1e300, 1.7976931348623157e308, -1e308),
    *(float("inf"), float("-inf"), float("nan")),
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "1",
    "-1",
    "1e308",
    "nan",
    "Infinity",
    "0x10",
    "abc",
    [],
    {},
    [[1]],
    {"a": 1},
    "\0",
)
USUAL: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.001, 0.7, 1, 1.5, 2),
    "top_p": (0.1, 0.9, 1),
    "top_k": (-1, 0, 1, 5, 50, 400),
    "min_p": (0, 0.05, 1),
    "presence_penalty": (-2, 0, 0.5, 2),
    "frequency_penalty": (-2, 0, 0.5, 2),
    "repetition_penalty": (0.5, 1, 1.3, 1e5),
    "seed": (0, 1, 42, 2**63 - 1),
    "n": (1, 2, 3, 100),
    "max_tokens": (1, 2, 16),
    "max_completion_tokens": (1, 2, 16),
    "max_output_tokens": (1, 2, 16),
    "min_tokens": (0, 1, 2),
    "logprobs": (True, False, 0, 1, 20),
    "top_logprobs": (0, 1, 20),
    "prompt_logprobs": (0, 1),
    "stop_token_ids": ([], [7], [7, 8]),
    "allowed_token_ids": ([5], [5, 6, 7], list(range(300))),
    "logit_bias": ({}, {"7": 1}, {"7": -100, "8": 100}),
    "bad_words": ([], ["a"], ["abc", " d"]),
    "stop": (None, "x", ["x", "yz"]),
    "ignore_eos": (True, False),
    "stream": (False, True),
    "stream_interval": (1, 2),
    "priority": (0, 0, 1),
    "thinking_token_budget": (None, -1, 5),
    "truncate_prompt_tokens": (None, -1, 5),
    "vllm_xargs": ({}, {"a": 1}, {"softspec": 1}, {"kv_transfer_params": "x"}),
    "repetition_detection": (None, {"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 2}),
    "length_penalty": (1.0,),
    "logprob_token_ids": (None, [1, 2]),
    "structured_outputs": (None, {"choice": ["ab", "c"]}, {"json_object": True}),
}


def random_fields(rng: random.Random, fields: tuple[str, ...]) -> dict[str, Any]:
    """Some of these fields with values as JSON has them; about half are usual for their field."""
    body = {field: _value(rng, field) for field in rng.sample(fields, rng.randint(1, min(5, len(fields))))}
    return dict(json.loads(json.dumps(body)))


def _value(rng: random.Random, field: str) -> Any:
    usual = USUAL[field]
    if rng.random() < 0.6:
        return rng.choice(usual)
    shape = rng.choice(usual)
    if isinstance(shape, list) and rng.random() < 0.8:
        return [_edge(rng) for _ in range(rng.choice((1, 2, 3, 300, 2000)))]
    if isinstance(shape, dict) and rng.random() < 0.8:
        if field == "logit_bias":
            return {str(_edge(rng)): _edge(rng) for _ in range(rng.choice((1, 2, 1500)))}
        return {key: _edge(rng) for key in shape or ("a", "b")}
    return _edge(rng)


def _edge(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(INTEGERS)
    if kind < 0.85:
        return rng.choice(FLOATS)
    return rng.choice(OTHERS)
