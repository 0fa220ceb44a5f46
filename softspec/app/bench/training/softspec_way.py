"""This project's trainer as a way to a training step.

In: a base, a cell and settings. Out: a way that takes optimizer steps and has gradients to compare. Trains by the
functions of `softspec train`, and by no others.
"""

from dataclasses import replace

from torch import Tensor

from softspec.app.bench.core.flags import parse_layers
from softspec.app.bench.training.material import adapter_states, random_examples
from softspec.app.bench.training.settings import MICRO_BATCHES, BenchSettings, Cell
from softspec.app.bench.training.ways import (
    CHECKED_EXAMPLES,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    ROUTING,
    SteppingWay,
)
from softspec.artefact.activation import Activation, AlwaysActivation
from softspec.artefact.cache import cache_folder
from softspec.errors import StorageError
from softspec.train.config import TrainConfig
from softspec.train.loop.keeping import make_room_for
from softspec.train.loop.schedule import ExampleOrder
from softspec.train.loop.step import optimizer_step
from softspec.train.members.frozen import Frozen
from softspec.train.members.kept import Kept
from softspec.train.members.likelihood import trunk_and_tail
from softspec.train.objective.objective import objective_of
from softspec.train.run import check_names, prepare


class Softspec(SteppingWay):
    """`softspec`: the steps of a first epoch, through the functions that `softspec train` calls.

    What is frozen of an example is kept in the cache folder of the process.
    """

    activation: Activation = TrainConfig.model_fields["activation"].default
    frozen_cache_gb = 1e6
    """Whatever the cell needs: only the disk bounds it."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings) -> None:
        content = {
            "base_model": base,
            "train_file": "none",
            "output_dir": "none",
            "num_members": cell.members,
            "renyi_alpha": settings.renyi_alpha,
            "schedule": "plain",  # the objective that the other ways have
            "activation": self.activation,
            "lora_r": settings.rank,
            "lora_alpha": 2 * settings.rank,
            "layers_to_transform": parse_layers(settings.layers),
            "micro_batch_size": settings.batch,
            "gradient_accumulation_steps": MICRO_BATCHES,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": MAX_GRAD_NORM,
            "frozen_cache_gb": self.frozen_cache_gb,
        }
        config = TrainConfig.model_validate(content)
        needed = CHECKED_EXAMPLES + settings.steps_per_cell * settings.examples_per_step
        examples = random_examples(base, cell, settings, needed)
        self._checked, self._examples = examples[:CHECKED_EXAMPLES], examples[CHECKED_EXAMPLES:]
        self._training = prepare(config, check_names(config), self._examples, [])
        for member, state in enumerate(adapter_states(base, cell, settings)):
            self._training.members.load_adapter(member, state)
        self.model = self._training.members.model
        self._training.members.frozen = self._keeping()
        self._steps = 0

    def _keeping(self) -> Frozen | None:
        """What keeps what is frozen; None where a run would not.

        Raises:
            StorageError: there is no room for it.
        """
        members = self._training.members
        frozen = Frozen(members.model, members.spec.layers[0], Kept(cache_folder("frozen")), "base")
        keeps, line = make_room_for(frozen, self._examples, self._training.config)
        if line and not keeps:
            raise StorageError(line)
        return frozen if keeps else None

    def optimizer_step(self) -> dict[str, float]:
        assert self._steps < self._training.order.steps_per_epoch, "its examples are no longer new"
        facts = optimizer_step(self._training, self._steps)
        self._steps += 1
        return {name: getattr(facts, name) for name in ROUTING}

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of a first step on `CHECKED_EXAMPLES`, (K, ...) by PEFT's names, on the CPU.

        Adapters are on everywhere, as in the other ways.
        """
        training = self._training
        changes = {
            "activation": AlwaysActivation(),
            "micro_batch_size": 1,
            "gradient_accumulation_steps": CHECKED_EXAMPLES,
            "max_grad_norm": 0.0,
        }
        config = training.config.model_copy(update=changes)
        checked = replace(
            training,
            config=config,
            objective=objective_of(config),
            examples=self._checked,
            order=ExampleOrder(config, CHECKED_EXAMPLES),
        )
        optimizer_step(checked, 0)
        return {
            name: weight.grad.cpu()
            for name, weight in training.members.named_weights()
            if weight.grad is not None
        }


class SoftspecLater(Softspec):
    """`softspec-later`: the same steps once all that is frozen is kept."""

    def __init__(self, base: str, cell: Cell, settings: BenchSettings) -> None:
        super().__init__(base, cell, settings)
        frozen = self._training.members.frozen
        if frozen:
            for example in self._examples:
                trunk, tail = trunk_and_tail(example, self.activation)
                frozen.of(trunk, [tail])


class SoftspecUnkept(Softspec):
    """`softspec-unkept`: the same steps of a run that keeps nothing."""

    frozen_cache_gb = 0.0


class SoftspecAlways(Softspec):
    """`softspec-always`: the step of `softspec` with adapters on in the whole prompt."""

    activation = AlwaysActivation()
