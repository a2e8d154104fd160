"""Chat templates of the kinds that public models have, cut down to what they do with contents."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = (  # Llama 3, Gemma
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
THINKING = (  # Qwen 3, DeepSeek R1: an earlier answer is shown without its thoughts
    "{%- for m in messages %}{%- set content = m.content %}"
    "{%- if m.role == 'assistant' and '</think>' in content %}"
    "{%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- if loop.last and thoughts %}"
    "{%- set content = '<think>\n' ~ thoughts ~ '\n</think>\n\n' ~ content %}{%- endif %}"
    "{%- endif %}{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PARTS = (  # vision models: contents are lists
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EITHER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
REPEATED = (  # the system's words again in front of the last message, which is said twice
    "{%- set ns = namespace(system='') %}{%- for m in messages %}"
    "{%- if m.role == 'system' %}{%- set ns.system = m.content %}{%- endif %}"
    "<|im_start|>{{ m.role }}\n{{ ns.system if loop.last }}{{ m.content[:1] | upper }}{{ m.content[1:] }}"
    "{% if loop.last %}{{ '\n' + m.content.strip() }}{% endif %}<|im_end|>\n{%- endfor %}"
)
MACROS = (  # a macro, a block that is set, a filter, text put together in other ways
    "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ '%s' % m.content }}{{ m.content | replace('a', 'A') }}<|im_end|>"
    "{% endmacro %}{% for m in messages %}{% set whole %}{{ turn(m) }}{% endset %}{{ whole }}"
    "{{ ', '.join([m.content, m.role]) }}{{ [m.role, m.content] | join('; ') }}{{ '{}!'.format(m.content) }}"
    "{{ {'said': m.content} | tojson }}{{ m.content | indent }}{{ m.content.splitlines() }}{% endfor %}"
)
INSTRUCTIONS = (  # Mistral: the system's words in the user's turn
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{%- for m in rest %}"
    "{%- if m.role == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.first and system is defined else '')"
    " + m.content + '[/INST]' }}{%- else %}{{ ' ' + m.content | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}"
)

HERMES = (  # Qwen 2.5
    "{%- if tools %}<|im_start|>system\n# Tools\n<tools>"
    "{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}"
    "\n</tools><|im_end|>\n{%- endif %}{%- for m in messages %}{%- if m.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{%- elif m.tool_calls %}<|im_start|>assistant{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{%- for call in m.tool_calls %}{%- if call.function %}{%- set call = call.function %}{%- endif %}"
    '{{ \'\n<tool_call>\n{"name": "\' }}{{ call.name }}{{ \'", "arguments": \' }}{{ call.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{%- endfor %}<|im_end|>\n"
    "{%- else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
LLAMA = (  # Llama 3.1
    "{%- for m in messages %}{%- if 'tool_calls' in m %}{%- if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{%- endif %}{%- set call = m.tool_calls[0].function %}"
    "{{- '<|im_start|>assistant\n\n' -}}{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}"
    "{{- call.arguments | tojson }}{{- '}<|im_end|>' }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>ipython\n\n' + m.content | tojson + '<|im_end|>' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n\n' }}"
    "{%- if tools and loop.last %}{% for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{% endfor %}{%- endif %}"
    "{{- m.content | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{%- if tools and loop.last %}"
    "{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}"
    "{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{%- endif %}"
    '{{ \'{"name": "\' + call.function.name + \'", "arguments": \' + call.function.arguments | tojson'
    " + ', \"id\": \"' + call.id + '\"}' }}{{ ', ' if not loop.last }}{%- endfor %}{{ ']<|im_end|>' }}"
    "{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{%- else %}{{ ' ' + m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}"
)
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
)
"""Tokens of control of the tests' tokenizers; those from ``<think>`` on are added, and not special."""
ALL = {
    "chatml": CHATML,
    "trimmed": TRIMMED,
    "thinking": THINKING,
    "parts": PARTS,
    "either": EITHER,
    "repeated": REPEATED,
    "macros": MACROS,
    "instructions": INSTRUCTIONS,
    "hermes": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
}
