"""Short chat templates that treat messages as those of known model families do."""

# Llama 3: what stands around a content is cut; one call, as JSON; results of tools as JSON texts.
LLAMA = """{{ bos_token }}{% for m in messages %}{% if m.tool_calls is defined %}\
{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}\
{% set call = m.tool_calls[0].function %}<|head|>assistant<|end|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot|>\
{% elif m.role == 'tool' %}<|head|>ipython<|end|>

{{ m.content | tojson }}<|eot|>{% else %}<|head|>{{ m.role }}<|end|>

{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|head|>assistant<|end|>

{% endif %}"""

# Qwen 3: thoughts before the last turn of the user go, others stand in a block of their own, also
# if they came in the content.
QWEN = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% set ns = namespace(last=0) %}\
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}\
{% endfor %}{% for m in messages %}{% set thought = m.reasoning_content or '' %}\
{% set said = m.content %}{% if not thought and '</think>' in said %}\
{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}\
{% set said = said.split('</think>')[-1].strip() %}{% endif %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>
{{ thought }}
</think>

{% endif %}{{ said }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# DeepSeek R1: the prompt for an answer begins to think; thoughts in the content go everywhere.
DEEPSEEK = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>\
{{ m.content }}{% else %}<|Assistant|>\
{{ m.content.split('</think>')[-1] }}<|endofsentence|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|Assistant|><think>
{% endif %}"""

# Mistral: the system text and the tools stand in the last turn of the user; ids of calls count.
MISTRAL = """{{ bos_token }}{% set system = '' %}{% if messages[0].role == 'system' %}\
{% set system = messages[0].content + '\\n\\n' %}{% endif %}\
{% set users = messages | selectattr('role', 'equalto', 'user') | list %}\
{% for m in messages %}{% if m.role == 'user' %}{% if m == users[-1] %}\
{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}\
[INST] {{ system + m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}\
{% elif m.tool_calls is defined %}[TOOL_CALLS] [{% for call in m.tool_calls %}\
{{ call.function | tojson }}{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}\
[TOOL_RESULTS] {"content": {{ m.content | string | tojson }}}[/TOOL_RESULTS]\
{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"""

# Gemma 2: no system text, the assistant is called model, and a line end closes each turn.
GEMMA = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>\
{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

# Granite: the date in the system text, tools as indented JSON.
GRANITE = """<|start|>system<|end|>Today's Date: {{ strftime_now('%B %d, %Y') }}.<|eot|>
{% if tools %}<|start|>tools<|end|>{{ tools | tojson(indent=4) }}<|eot|>
{% endif %}{% for m in messages %}<|start|>{{ m.role }}<|end|>{{ m.content }}\
{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson(indent=4) }}{% endfor %}<|eot|>
{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"""

# Cohere: the plan for tools before their calls, arguments spelled as Python does.
COHERE = """{{ bos_token }}{% for m in messages %}<|TURN|><|{{ m.role | upper }}|>\
{% if m.tool_plan %}<|PLAN|>{{ m.tool_plan }}{% endif %}{% for call in m.tool_calls or [] %}
{'name': {{ call.function.name }}, 'args': {{ call.function.arguments }}}{% endfor %}\
{{ m.content | trim }}<|END|>{% endfor %}{% if add_generation_prompt %}<|TURN|><|ASSISTANT|>\
{% endif %}"""

# Qwen 3 Coder: each argument in a tag of its own.
XML = """{% for tool in tools or [] %}<function>{{ tool.function.name }}</function>
{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items %}<parameter={{ key }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor %}</function>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Knows role and content alone.
PLAIN = """{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""

# As Qwen 2's and SmolLM2's: a line end follows the end token.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
