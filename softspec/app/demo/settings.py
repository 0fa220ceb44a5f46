"""How large the demo is, and the recipe by which it trains; every default lives here.

In: nothing. Out: one frozen `DemoSettings`. Knows nothing of how training and serving work.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECIPE: Mapping[str, Any] = {
    "num_members": 4,
    "renyi_alpha": 0.8,
    "schedule": "plain",  # what the figures in README were made with
    "lora_r": 4,
    "lora_alpha": 32,
    "layers_to_transform": "top_third",
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "dtype": "float32",
    "logging_steps": 1,
    "save_steps": 25,
}
"""Keys of `TrainConfig`. Rank 4 in the top third of the layers keeps four members in 16 bits under 4 MB.

The rule for the number of steps: one pass over the training statements, and of these as many as six minutes on two
cores pay for at 3 s a step of 8, which are 120 steps. README.md beside this file says what else was tried.
"""


@dataclass(frozen=True)
class ServingSettings:
    """vLLM's flags, how long it may take to be ready, and the policy that is shown.

    `threshold` is in nats; by default half of log 2, where log 2 is what two equally strong camps of members give.
    """

    flags: tuple[str, ...] = (
        *("--max-model-len", "512", "--max-num-batched-tokens", "512", "--max-num-seqs", "16"),
        "--enforce-eager",
    )
    ready_timeout_s: float = 600
    metric: str = "mutual_information"
    threshold: float = math.log(2) / 2

    @property
    def policy(self) -> dict[str, Any]:
        """What goes into a request as `uncertainty.policy`."""
        return {"action": "abstain", "metric": self.metric, "threshold": self.threshold}


@dataclass(frozen=True)
class DemoSettings:
    """What the demo's numbers depend on.

    `base` is a checkpoint directory or a hub id; None converts the one of `softspec.app.smollm2`.
    """

    base: str | None = None
    seed: int = 0
    facts_per_example: int = 4
    train_examples: int = 960
    held_out_examples: int = 160
    recipe: Mapping[str, Any] = field(default_factory=lambda: RECIPE)
    serving: ServingSettings = field(default_factory=ServingSettings)
