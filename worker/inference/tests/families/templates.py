"""Chat templates that write what the families' models read, out of what real templates are made of."""

# [INST] … [/INST], the system message inside the first question; refuses what it can't write.
BRACKETS = """\
{% macro question(text, system) %}
[INST] {% if system %}<<SYS>>
{{ system }}
<</SYS>>

{% endif %}{{ text.strip() }} [/INST]{% endmacro %}
{% set state = namespace(system=none, next='user') %}
{% for turn in messages %}
  {% if turn['role'] == 'system' %}
    {% if not loop.first %}{{ raise_exception('A system message comes first') }}{% endif %}
    {% set state.system = turn['content'] %}
  {% elif turn['role'] != state.next %}
    {{ raise_exception('Roles must alternate: a message of ' + state.next + ' is missing') }}
  {% elif turn['role'] == 'user' %}
{{ bos_token }}{{ question(turn['content'], state.system) }}
    {%- set state.system = none %}
    {% set state.next = 'assistant' %}
  {% else %}
{{ ' ' + turn['content'].strip() + ' ' + eos_token }}
    {%- set state.next = 'user' %}
  {% endif %}
{% endfor %}
"""

# Headers between marks; a date that the caller may set. Calls are the assistant's whole answer, one
# at a time.
HEADERS = """\
{%- macro block(role, text) -%}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' ~ (text | trim) ~ '<|eot_id|>' -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') -%}
{%- set opening = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | list -%}
{%- set state = namespace(functions='') -%}
{%- if tools is iterable and tools | length > 0 -%}
    {%- for tool in tools -%}
        {%- set state.functions = state.functions ~ '\\n' ~ tool | tojson(indent=4) -%}
    {%- endfor -%}
{%- endif -%}
{{- block('system', 'Today Date: ' + today + '\\n\\n' + (opening | join('\\n')) + state.functions) -}}
{%- for m in messages if m.role != 'system' -%}
    {%- if m.role == 'tool' -%}
        {{- block('ipython', m.content | tojson if m.content is iterable else m.content) -}}
    {%- elif 'tool_calls' in m -%}
        {%- if m.tool_calls | length > 1 %}{{ raise_exception('One call at a time') }}{% endif -%}
        {%- set call = m.tool_calls[0].function -%}
        {{- block('assistant', '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}') -}}
    {%- else -%}
        {{- block(m.role, m.content) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# [INST]…[/INST] with the system message before the last question, and before that the functions. Calls
# are a list after a mark, and have ids of nine characters.
INSTRUCTIONS = """\
{%- set rest = messages | rejectattr("role", "equalto", "system") | list %}
{%- set system = (messages | first).content if rest | length != messages | length else "" %}
{%- if rest | length == 0 %}
    {{- raise_exception("There is nothing to answer.") }}
{%- endif %}
{%- set asked = rest | selectattr("role", "equalto", "user") | list | length %}
{%- set ns = namespace(asked=0) %}
{%- macro checked(id) %}
    {%- if not id is defined or id | length != 9 %}{{ raise_exception("An id has nine characters") }}{% endif %}
    {{- id | tojson }}
{%- endmacro %}
{{- bos_token }}
{%- for message in rest %}
    {%- set before = system ~ "\\n\\n" if loop.last and system else "" %}
    {%- if message["role"] == "user" %}
        {%- set ns.asked = ns.asked + 1 %}
        {%- if tools is not none and ns.asked == asked %}
            {{- "[AVAILABLE_TOOLS]" ~ tools | tojson ~ "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " ~ before ~ message["content"] ~ "[/INST]" }}
    {%- elif message["role"] == "tool" %}
        {{- "[TOOL_RESULTS]" ~ {"content": message.content, "name": message.name} | tojson }}
        {{- checked(message.tool_call_id) ~ "[/TOOL_RESULTS]" }}
    {%- elif message.tool_calls is defined %}
        {{- "[TOOL_CALLS][" }}
        {%- for call in message.tool_calls %}
            {{- (call.function | tojson)[:-1] ~ ', "id": ' ~ checked(call.id) ~ "}" ~ (", " if not loop.last else "]") }}
        {%- endfor %}
        {{- eos_token }}
    {%- else %}
        {{- " %s%s" | format(message["content"], eos_token) }}
    {%- endif %}
{%- endfor %}
"""

# ChatML with a default system message, and no beginning-of-text token.
CHATML = """\
{% if messages[0].role != 'system' %}
<|im_start|>system
You are a tiny model.<|im_end|>
{% endif %}
{% for turn in messages %}
<|im_start|>{{ turn.role }}
{{ turn.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

TOOLS = "{{ raise_exception('this is the template for tools') }}"

# ChatML with thoughts, which are kept in the newest answers only and may be switched off, and with
# functions, whose calls and results stand between tags.
THINKING = """\
{%- set ns = namespace(asked=-1) %}
{%- for turn in messages[::-1] %}
    {%- if ns.asked < 0 and turn.role == 'user' and not turn.content.startswith('<tool_response>') %}
        {%- set ns.asked = loop.revindex0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{ tool | tojson ~ '\\n' }}{% endfor %}
    {{- 'Call as in <tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
    {%- if turn.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' ~ turn.content ~ '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + turn.role + '\\n' }}
    {%- set parts = turn.content.split('</think>') %}
    {%- if turn.role != 'assistant' or parts | length == 1 %}
        {{- turn.content }}
    {%- else %}
        {%- if loop.index0 > ns.asked %}
            {{- '<think>\\n' ~ parts[0].split('<think>')[-1].strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- parts[-1].lstrip('\\n') }}
    {%- endif %}
    {%- for call in turn.tool_calls or [] %}
        {{- '\\n' if turn.content or not loop.first }}
        {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' ~ call.function.arguments | tojson ~ '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# ChatML with a date, a mode that the system message may name, and marks around what is generated.
MARKED = """\
{# /think or /no_think #}
{%- set given = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if '/no_think' in given or (enable_thinking is defined and not enable_thinking) -%}
    {%- set mode = '/no_think' -%}
{%- else -%}
    {%- set mode = '/think' -%}
{%- endif -%}
{%- set silence = '<think>\\n\\n</think>\\n' if mode == '/no_think' else '' -%}
<|im_start|>system
Today: {{ strftime_now('%d %B %Y') }}
Mode: {{ mode }}
{%- set wishes = given.replace('/no_think', '').replace('/think', '').rstrip() -%}
{%- if wishes %}{{ '\\n\\n' ~ wishes }}{% endif -%}
{{ '<|im_end|>\\n' }}
{%- for turn in messages -%}
    {%- if turn.role == 'user' -%}
        {{ '<|im_start|>user\\n' + turn.content + '<|im_end|>\\n' }}
    {%- elif turn.role == 'assistant' -%}
        {{ '<|im_start|>assistant\\n' }}
        {%- generation -%}
        {{ silence + turn.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' + silence }}{%- endif -%}
"""

# A mark for each role. Tokenizers of this family take the line end after a mark into it.
PHI = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>\\n' + turn['content'] + '<|end|>\\n' }}{% endfor %}"
    "{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"
)

# Turns of user and model; the system message stands before the first question.
TURNS = """\
{{ bos_token }}
{%- set opening = '' -%}
{%- if messages[0].role == 'system' -%}
    {%- set opening = messages[0].content ~ '\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for turn in messages -%}
    {%- if loop.previtem is defined and loop.previtem.role == turn.role -%}
        {{ raise_exception("Two messages of " + turn.role + " follow each other") }}
    {%- endif -%}
<start_of_turn>{{ {'assistant': 'model'}.get(turn.role, turn.role) }}
{{ opening if loop.first }}
    {%- if turn.content is string -%}
        {{ turn.content | trim }}
    {%- else -%}
        {%- for part in turn.content if part.type == 'text' %}{{ part.text | trim }}{% endfor -%}
    {%- endif -%}
<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

# What else templates do: JSON, dictionaries, formats, loop controls, more dates.
KITCHEN_SINK = """\
{%- set names = {"system": "S", "user": "U", "assistant": "A"} -%}
{{- bos_token }}|{{ unk_token if unk_token is defined else '-' }}|{{ strftime_now('%A %-d.%m.%y %H:%M:%S %j %I%p %%') }}
{%- for message in messages -%}
    {%- if loop.index > 3 %}{% break %}{% endif -%}
    {%- if not message.content.strip() %}{% continue %}{% endif %}
[{{ names.get(message.role, '?') }}{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}]
{{ message | tojson }}
{{ message | tojson(indent=2) }}
{{ message.content.split() | length }} {{ message['content'][:5] | upper }} {{ message.role.title() }}
{%- endfor %}
{% for key, value in names.items() %}{{ key }}={{ value }}{{ ", " if not loop.last else "." }}{% endfor %}
{{ {"z": 1, "a": [1.5, true, none, "é\\"<&>'"], "e": {}, "l": []} | tojson }}
{{ {"z": [{}, [1]], "a": {"k": none}} | tojson(indent=4) }}
{{ {"b": 1, "a": [2, {"d": 3, "c": 4}]} | tojson(separators=(",", ":"), sort_keys=true) }}
{{ "é🙂" | tojson(ensure_ascii=true) }}
{%- set text -%}
  captured {{ 1 + 2 * 3 // 2 }} {{ 7 % 4 }} {{ 2 ** 3 }}
{%- endset %}
{{ text }} {{ "%s and %s" | format("a", "b") }} {{ ["b", "a"] | sort | join("+") }} {{ [1, 2, 3] | sum }}
{{ messages | map(attribute="role") | list | unique | join(",") }} {{ (messages | last).role | capitalize }}
{{ nothing is defined }} {{ nothing | default("fallback", true) }} {{ [] is iterable }} {{ {} is mapping }} {{ 1 is number }}
{{ "  spaces" | trim }}{{ "a\\nb" | indent(2) }} {{ "Hello"[1:-1] }} {{ "a-b-c".split("-")[::-1] | join }} {{ "abc" | replace("b", "x") | first }}
{{ namespace(a=1).a }} {{ dict(a=1)["a"] }} {{ range(3) | list }} {{ "1" ~ 2 }} {{ [1] + [2] }} {{ true }} {{ none }} {{ 1.0 }} {{ {"a": "b"} }}
"""
