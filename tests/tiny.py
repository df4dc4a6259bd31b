"""The tiny policy of actors/tiny_policy.py, under the name by which tests know it."""

from actors.tiny_policy import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    USER,
    make_tiny_policy,
    make_tiny_tokenizer,
)  # noqa
