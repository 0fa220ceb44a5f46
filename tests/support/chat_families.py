"""Bases of different families as far as rows need them: a tokenizer, a chat template and the tokens that end answers.

In: nothing. Out: `FAMILIES`. The templates are our own, with the habits of the families they are named after.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerFast

from tests.support.tokenizer_families import LLAMA3, byte_level, sentencepiece

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- call.function.name }}{{- '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN3 = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set thought = message.reasoning_content or '' %}
        {%- set said = message.content %}
        {%- if not thought and '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- said.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>assistant\\n' + said }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

LLAMA3_DATED = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y %H:%M:%S') %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one tool call at once') }}{%- endif %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + message.tool_calls[0].function.name }}
        {{- '", "parameters": ' }}{{- message.tool_calls[0].function.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

LLAMA2 = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{%- set turns = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else %}{{- ' ' + message['content'].strip() + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""

MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'system' %}{{- '[SYS]' + message['content'] + '[/SYS]' }}
    {%- else %}{{- message['content'] + eos_token }}{%- endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

PHI3 = """\
{%- for message in messages %}{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- '<|endoftext|>' }}{%- endif %}"""

R1 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- message['content'] }}
    {%- elif message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}
    {%- else %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
        {{- '<|Assistant|>' + content + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|>' }}THINK{%- endif %}"""

VICUNA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- message.content + '\\n' }}
    {%- elif message.role == 'user' %}{{- 'USER: ' + message.content + '\\n' }}
    {%- else %}{{- 'ASSISTANT: ' + message.content + eos_token + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT: ' }}{%- endif %}"""

ZEPHYR = """\
{%- for message in messages %}{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""

PARTS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.content is string %}{{- message.content }}
    {%- else %}{%- for part in message.content %}{{- '[' + part.type + ']' + part.text }}{%- endfor %}{%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = (
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
R1_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>")


def _qwen(nfc: bool = True) -> PreTrainedTokenizerFast:
    return byte_level(LLAMA3, CHATML_TOKENS, nfc=nfc, eos_token="<|im_end|>")


def _llama3() -> PreTrainedTokenizerFast:
    return byte_level(LLAMA3, LLAMA3_TOKENS, "<|begin_of_text|>", add_bos=True, eos_token="<|eot_id|>")


def _gemma() -> PreTrainedTokenizerFast:
    return sentencepiece("never", ("<start_of_turn>", "<end_of_turn>"))


def _phi3() -> PreTrainedTokenizerFast:
    names = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>")
    return sentencepiece("first", names, rstrip=True, eos_token="<|endoftext|>")


def _r1() -> PreTrainedTokenizerFast:
    return byte_level(LLAMA3, R1_TOKENS, "<|begin|>", add_bos=True, eos_token="<|end|>")


def _gpt2(add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    return byte_level(None, (end,), end, add_prefix_space=add_prefix_space, eos_token=end, unk_token=end)


@dataclass(frozen=True)
class Family:
    """A kind of base.

    Args:
        stops: tokens that end an answer beside the tokenizer's own.
        systems, tools: whether the template takes several turns of the system, and tools.
        alternates: whether it takes nothing but turns of user and assistant in turn.
        thinks: whether the prompt opens a thought, which an answer must close.
        keeps_text: whether the tokenizer gives back what it was given, character for character.
    """

    build: Callable[[], PreTrainedTokenizerFast]
    template: str
    stops: tuple[str, ...] = ()
    systems: bool = False
    tools: bool = False
    alternates: bool = False
    thinks: bool = False
    keeps_text: bool = True

    @cache  # noqa: B019 - the families live as long as the tests
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer with its template, the same at every call."""
        tokenizer = self.build()
        tokenizer.chat_template = self.template
        return tokenizer

    @property
    def stop_ids(self) -> set[int]:
        """Every token at which a server of this base stops."""
        tokenizer = self.tokenizer()
        return {tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(stop) for stop in self.stops)}


FAMILIES = {
    "chatml": Family(lambda: _qwen(nfc=False), CHATML, systems=True, tools=True),
    "qwen-nfc": Family(_qwen, CHATML, systems=True, tools=True, keeps_text=False),
    "qwen3": Family(lambda: _qwen(nfc=False), QWEN3, systems=True),
    "llama-2-always": Family(lambda: sentencepiece("always"), LLAMA2, alternates=True),
    "llama-2-first": Family(lambda: sentencepiece("first"), LLAMA2, alternates=True),
    "vicuna-always": Family(lambda: sentencepiece("always"), VICUNA, systems=True),
    "vicuna-first": Family(lambda: sentencepiece("first"), VICUNA, systems=True),
    "mistral": Family(lambda: sentencepiece("first"), MISTRAL, systems=True),
    "mistral-never": Family(lambda: sentencepiece("never"), MISTRAL, systems=True),
    "gemma": Family(_gemma, GEMMA, ("<end_of_turn>",), alternates=True),
    "phi-3": Family(_phi3, PHI3, ("<|end|>",), systems=True),
    "llama-3-dated": Family(_llama3, LLAMA3_DATED, systems=True, tools=True),
    "llama-parts": Family(_llama3, PARTS, systems=True),
    "r1": Family(_r1, R1.replace("THINK", "{{- '<think>\\n' }}"), systems=True, thinks=True),
    "r1-older": Family(_r1, R1.replace("THINK", ""), systems=True),
    "zephyr-gpt-2": Family(_gpt2, ZEPHYR, systems=True),
    "gpt-2-prefix": Family(lambda: _gpt2(add_prefix_space=True), ZEPHYR, systems=True),
}
