"""The chart with the values of every case."""

import pytest

from tests.support.chart import CASES, Manifest, render


@pytest.fixture(params=CASES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    examples, values = CASES[request.param]
    return render(*examples, values=values)
