"""What vLLM's output processor is given in tests."""

from typing import Any


def core_request(params: Any) -> Any:
    """A request named `group` with one token of prompt, as the front end keeps it."""
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id="group",
        external_req_id="group",
        prompt_token_ids=[5],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
