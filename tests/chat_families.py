"""Chat templates as model families publish them, with the tokens that these call special."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chat_prompts import TokenizerInProcess, special_codec
from plinth.tokenizer.vocabulary import CHATML, SPECIAL_TOKENS


@dataclass(frozen=True)
class Family:
    """`special`: the first is the beginning of a sequence. `end` is what ends an answer, which is
    `trimmed` where the template does so; `behind` is what the template writes after the last."""

    template: str
    special: tuple[str, ...]
    eos: str
    end: str
    behind: str = ""
    trimmed: bool = False

    def opened(self, folder: Path) -> TokenizerInProcess:
        """Its tokenizer, of bytes and special tokens, in a new folder."""
        config = {"bos_token": self.special[0], "eos_token": self.eos}
        special_codec(folder, self.special, self.template, **config)
        return TokenizerInProcess(folder)


_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)

FAMILIES = {
    "Plinth": Family(CHATML, SPECIAL_TOKENS, "<|im_end|>", "<|im_end|>", "\n"),
    "Qwen2, base": Family(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|endoftext|>",
        "<|im_end|>",
        "\n",
    ),
    "Llama 3": Family(
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | "
        "trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        "<|end_of_text|>",
        "<|eot_id|>",
        trimmed=True,
    ),
    "Mistral": Family(
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == "
        "'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == "
        "'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user "
        "and assistant roles are supported!') }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        "</s>",
        "</s>",
    ),
    "Zephyr": Family(
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
        "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
        "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
        ("<s>", "</s>"),
        "</s>",
        "</s>",
        "\n",
    ),
    "Gemma 2": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role "
        "not supported') }}{% endif %}{% for message in messages %}" + _ALTERNATE + "{% if "
        "(message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = "
        "message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | "
        "trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{'<start_of_turn>model\n'}}{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        "\n",
        trimmed=True,
    ),
    "Phi 3": Family(
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + "
        "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
        "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        "<|endoftext|>",
        "<|end|>",
        "\n<|endoftext|>",
    ),
    "GLM 4, whose turns only begin": Family(
        "[gMASK]<sop>{% for item in messages %}{% if item['content'] %}<|{{ item['role'] }}|>"
        "{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"),
        "<|endoftext|>",
        "<|user|>",
    ),
    "no special token (Alpaca)": Family(
        "{% for message in messages %}{% if message['role'] == 'user' %}### Instruction:\n"
        "{{ message['content'] }}\n\n{% else %}### Response:\n{{ message['content'] }}\n\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
        ("<s>", "</s>"),
        "</s>",
        "\n\n</s>",
    ),
}
