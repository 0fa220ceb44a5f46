"""softspec: alpha-Renyi LoRA ensembles, trained and served as one model that knows when it does not know.

The rooms: `maths` (tensors), `artefact` (an ensemble directory), `reference` (the mixture in plain transformers),
`engine` (all that touches vLLM), `train`, `server`, `ensemble` (an ensemble to be asked from Python), and `app`, the
roof: command line, demo, benchmarks. `train` and `server` build on the rooms before them and never on each other.

The names here are for programs that use softspec. Each is imported when it is first asked for, with the packages that
its room needs: `import softspec` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from softspec.errors import SoftspecError, UserError

if TYPE_CHECKING:
    from softspec.artefact.manifest import Manifest as Manifest
    from softspec.artefact.manifest import load_manifest as load_manifest
    from softspec.ensemble.ensemble import Ensemble as Ensemble
    from softspec.ensemble.load import load as load
    from softspec.ensemble.results import Answer as Answer
    from softspec.ensemble.results import Decided as Decided
    from softspec.ensemble.results import ScoredAnswer as ScoredAnswer
    from softspec.ensemble.results import ScoredChoices as ScoredChoices
    from softspec.maths.answer import AnswerUncertainty as AnswerUncertainty
    from softspec.maths.answer import TokenUncertainty as TokenUncertainty
    from softspec.maths.answer import summarise as summarise
    from softspec.maths.mixture import mixture_logprobs as mixture_logprobs
    from softspec.maths.options import OptionsUncertainty as OptionsUncertainty
    from softspec.maths.renyi import renyi_loss as renyi_loss
    from softspec.maths.renyi import responsibilities as responsibilities
    from softspec.maths.sampling import SamplingSpec as SamplingSpec
    from softspec.reference import ReferenceEnsemble as ReferenceEnsemble
    from softspec.train.config import TrainConfig as TrainConfig
    from softspec.train.config import load_config as load_config
    from softspec.train.run import train_ensemble as train_ensemble

__version__ = "0.1.0"

_ROOMS = {
    "Answer": "ensemble.results",
    "AnswerUncertainty": "maths.answer",
    "Decided": "ensemble.results",
    "Ensemble": "ensemble.ensemble",
    "Manifest": "artefact.manifest",
    "OptionsUncertainty": "maths.options",
    "ReferenceEnsemble": "reference",
    "SamplingSpec": "maths.sampling",
    "ScoredAnswer": "ensemble.results",
    "ScoredChoices": "ensemble.results",
    "TokenUncertainty": "maths.answer",
    "TrainConfig": "train.config",
    "load": "ensemble.load",
    "load_config": "train.config",
    "load_manifest": "artefact.manifest",
    "mixture_logprobs": "maths.mixture",
    "renyi_loss": "maths.renyi",
    "responsibilities": "maths.renyi",
    "summarise": "maths.answer",
    "train_ensemble": "train.run",
}
"""Public name -> the module that it is imported from."""

__all__ = ["SoftspecError", "UserError", "__version__", *_ROOMS]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _ROOMS:
            raise AttributeError(f"module 'softspec' has no attribute '{name}'")
        return getattr(import_module(f"softspec.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
