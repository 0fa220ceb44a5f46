"""The worker takes the adapter of its model runner, and refuses runners whose draws were not tested."""

import pytest

from softspec.engine.worker.install import EnsembleWorker
from softspec.errors import UnsupportedEngineError


class OtherSampler:
    pass


class OtherRunner:
    sampler = OtherSampler()


def test_other_samplers_are_refused_by_name() -> None:
    worker = EnsembleWorker()
    worker.model_runner = OtherRunner()

    with pytest.raises(
        UnsupportedEngineError, match=r"runner .*OtherRunner draws with .*OtherSampler, .* tested"
    ):
        worker.install_ensemble_sampler()
