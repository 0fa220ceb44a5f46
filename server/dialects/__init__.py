"""The other two ways to ask an ensemble: OpenAI's Responses and Anthropic's Messages, with `uncertainty` and policy."""
