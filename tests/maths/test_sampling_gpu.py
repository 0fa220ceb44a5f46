"""What the engine computes at every token, on a CUDA device: the same draws and numbers as on the CPU.

Left out unless asked for: `pytest -m gpu`.
"""

import pytest
import torch

from softspec.maths.mixture import uniform_log_weights
from softspec.maths.sampling import draw_tokens
from softspec.maths.uncertainty import predict

pytestmark = pytest.mark.gpu

VOCABULARY = 128_256


def test_an_answer_replays_on_another_device() -> None:
    """Noise differs in its last bits, for logarithms do; draws do not."""
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(256, VOCABULARY, generator=generator).mul_(3).log_softmax(-1)
    seeds = torch.randint(0, 2**62, (256,), generator=generator)
    positions = torch.randint(0, 4096, (256,), generator=generator)
    plain = (torch.ones(256), torch.zeros(256, dtype=torch.int64), torch.ones(256), torch.zeros(256))

    drawn = draw_tokens(logprobs.cuda(), *plain, seeds, positions)

    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), draw_tokens(logprobs, *plain, seeds, positions))


def test_uncertainty_is_the_cpus() -> None:
    logits = torch.randn(16, 4, VOCABULARY, generator=torch.Generator().manual_seed(1)).mul_(3)
    log_weights = uniform_log_weights(4).float().expand(16, 4)

    found = predict(logits.cuda().log_softmax(-1), log_weights.cuda())

    expected = predict(logits.log_softmax(-1), log_weights)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name).cpu(), value, atol=1e-4, rtol=0)
