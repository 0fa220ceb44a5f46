"""One token of a model that is served under no name yet.

In: the client and the registry's secret name. Out: nothing; what was drawn is in the trace.
"""

from contextlib import aclosing
from uuid import uuid4

from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams

from softspec.engine.front.client import EnsembleClient
from softspec.errors import EngineError


async def draw_unpublished(client: EnsembleClient, model: str) -> None:
    """Let a model draw one token after token 0, which every vocabulary has.

    Raises:
        EngineError: there is no answer.
    """
    prompt, params = TokensPrompt(prompt_token_ids=[0]), SamplingParams(max_tokens=1, temperature=0)
    # The client looks at the name only.
    asked = LoRARequest(model, 1, "unpublished")
    async with aclosing(client.generate(prompt, params, f"trial-{uuid4()}", lora_request=asked)) as outputs:
        async for output in outputs:
            if (reason := output.outputs[0].finish_reason) not in (None, "stop", "length"):
                raise EngineError(f"the engine ended its first answer with '{reason}'")
