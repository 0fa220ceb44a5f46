"""An engine that says a given text, through vLLM's real input and output processors: only scheduler and model are not.

In: the text that it says to everything, token by token. Out: vLLM's own outputs, with stop strings, deltas, merged
chunks and the text of log-probabilities as vLLM makes them.
"""

import asyncio
from collections.abc import AsyncGenerator
from copy import copy
from typing import Any

import numpy as np

from softspec.engine.wire import COLUMNS, KEY, GroupSpec
from tests.support.scripted_vllm import FakeAsyncLLM


class SpokenAsyncLLM(FakeAsyncLLM):
    """Says `text` and then ends the turn; `asked` are the parameters of all requests, as the engine core gets them.

    `broken` is the `stop_reason` with which it ends every request in an error, if any; "" stands for none. `rivals`:
    what the last member finds likelier than a byte that is drawn.
    """

    output_processor: Any

    def __init__(self, config: Any, text: str = "yes") -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        super().__init__(config)
        self.text = text
        self.rivals: dict[str, str] = {}
        self.asked: list[Any] = []
        self.output_processor = OutputProcessor(self.renderer.tokenizer, log_stats=False)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, lora_request: Any = None, **_: Any
    ) -> AsyncGenerator[Any, None]:
        from vllm.v1.engine.output_processor import RequestOutputCollector
        from vllm.v1.engine.parallel_sampling import ParentRequest

        request = self.input_processor.process_inputs(
            request_id, prompt, params, ("generate",), lora_request=lora_request
        )
        self.input_processor.assign_request_id(request)
        queue = RequestOutputCollector(params.output_kind, request.request_id)
        family = ParentRequest(request) if params.n > 1 else None
        rows = []
        for index in range(params.n):
            row = copy(request)
            if family is not None:
                row.request_id, row.sampling_params = family.get_child_info(index)
            rows.append(row)
            self.output_processor.add_request(row, None, family, index, queue)
            self.asked.append(row.sampling_params)
        for step in range(1 + len(self._script())):
            self.output_processor.process_outputs(
                [output for row in rows for output in self._said(row, step)]
            )
            await asyncio.sleep(0)
            while (output := queue.get_nowait()) is not None:
                yield output

    def _script(self) -> list[int]:
        return list(self.renderer.tokenizer.encode(self.text, add_special_tokens=False))

    def _said(self, row: Any, step: int) -> list[Any]:
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        if row.request_id not in self.output_processor.request_states:
            return []
        script = [*self._script(), self.renderer.get_eos_token_id()]
        params, end = row.sampling_params, None
        if self.broken is not None:
            return [EngineCoreOutput(row.request_id, [], None, finish_reason=FinishReason.ERROR,
                                     stop_reason=self.broken or None)]  # fmt: skip
        if step + 1 == len(script):
            end = FinishReason.STOP
        elif step + 1 == params.max_tokens:
            end = FinishReason.LENGTH
        new_logprobs = self._columns(script[step], step, params)
        return [EngineCoreOutput(row.request_id, [script[step]], new_logprobs, finish_reason=end)]

    def _columns(self, token: int, step: int, params: Any) -> Any:
        """A log-probability row as the worker writes it: the drawn token, the likeliest ones, a group's numbers."""
        from vllm.v1.outputs import LogprobsLists

        if params.logprobs is None:
            return None
        wire = (params.extra_args or {}).get(KEY)
        spec = GroupSpec.from_wire(wire) if wire else None
        num_top = spec.num_top if spec else params.logprobs
        ids, values = [token] * (1 + num_top), [-0.5 - step] * (1 + num_top)
        if spec:
            numbers = [0.6, 0.5, 0.1, 0.0, *[-0.5 - step] * spec.num_members]
            choices = [token] * (spec.num_members - 1) + [self._rival(token)]
            ids, values = [*ids, *[0] * len(COLUMNS), *choices], values + numbers
        return LogprobsLists(np.array([ids]), np.array([values]), np.array([1]))

    def _rival(self, token: int) -> int:
        encode = self.renderer.tokenizer.encode
        rivals = {encode(drawn)[0]: encode(rival)[0] for drawn, rival in self.rivals.items()}
        return int(rivals.get(token, token))
