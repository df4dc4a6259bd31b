"""The report as one HTML file: no scripts, nothing loaded from anywhere, every text escaped.

Prompts and answers come from data sets and models, so they are hostile until shown otherwise: jinja2
escapes them, a content security policy forbids scripts, requests and foreign styles, and each is isolated
so that right-to-left text cannot reorder its surroundings. Knows nothing of files.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from engine.report.summary import MISSING, Summary, fact, percent, tables
from engine.watch.text import printable


@dataclass(frozen=True)
class Figure:
    """One figure; uri is None where there are no data for it yet."""

    title: str
    caption: str
    uri: str | None


STYLE = """
:root { color-scheme: light dark; --line: #8885; --faint: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; } .facts th, .facts td { text-align: left; overflow-wrap: anywhere; }
.facts td:first-child, .facts th:first-child { overflow-wrap: normal; }
.scroll { overflow-x: auto; } .scroll td { white-space: nowrap; }
img { max-width: 100%; background: #fff; border-radius: .3rem; } figure { margin: 1.2rem 0; }
figcaption, .faint { opacity: .75; font-size: .9rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; unicode-bidi: isolate;
  background: var(--faint); border-radius: .3rem; padding: .6rem; margin: .2rem 0 .6rem; font-size: .85rem; }
.sample { border-left: 3px solid var(--line); padding-left: 1rem; margin: 1.5rem 0; }
""".strip()

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ s.name|one_line }} – Kumite report</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ s.name|one_line }}</h1>
<p class="faint">{{ s.status|one_line }} · {{ s.iterations|length }}{% if s.num_iterations %} of
{{ s.num_iterations }}{% endif %} iterations{% if s.judge %} · win rates by {{ s.judge|one_line }}{% endif %}</p>
<h2>Iterations</h2>
{% if s.iterations %}
{% for columns in tables %}
<div class="scroll"><table>
<thead><tr>{% for c in columns %}<th scope="col">{{ c.heading|one_line }}</th>{% endfor %}</tr></thead>
<tbody>{% for i in s.iterations %}
<tr>{% for c in columns %}<td>{{ c.text(i)|one_line }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="faint">Win rates with 95 % intervals; lengths in tokens; {{ missing }}: not there yet. Stages overlap,
so their busy times may add up to more than the wall time.</p>
{% else %}<p>Not there yet.</p>
{% endif %}
<h2>Figures</h2>
{% if figure_note %}<p>{{ figure_note|one_line }}</p>{% endif %}
{% for f in figures %}
<figure>
{% if f.uri %}<img src="{{ f.uri }}" alt="{{ f.title }}"><figcaption>{{ f.caption }}</figcaption>
{% else %}<p>{{ f.title }}: not there yet.</p>{% endif %}
</figure>
{% endfor %}
<h2>Samples of the last iteration</h2>
{% for x in samples %}
<div class="sample">
<strong>Prompt</strong><pre dir="auto">{{ x.prompt|visible }}</pre>
<strong>Best answer</strong> <span class="faint">{{ x.best_win_rate|rate }}</span>
<pre dir="auto">{{ x.best|visible }}</pre>
<strong>Worst answer</strong> <span class="faint">{{ x.worst_win_rate|rate }}</span>
<pre dir="auto">{{ x.worst|visible }}</pre>
</div>
{% else %}<p>Not there yet.</p>
{% endfor %}
{% macro facts(pairs) %}
{% if pairs %}<table class="facts"><tbody>{% for key, value in pairs.items() %}
<tr><th scope="row">{{ key|one_line }}</th><td>{{ value|fact|one_line }}</td></tr>{% endfor %}
</tbody></table>{% else %}<p>Not there yet.</p>{% endif %}
{% endmacro %}
<h2>Configuration</h2>
{{ facts(s.config) }}
<h2>Provenance</h2>
{{ facts(s.provenance) }}
<table class="facts"><thead><tr><th scope="col">policy</th><th scope="col">weights</th>
<th scope="col">reference</th></tr></thead><tbody>
<tr><td>start</td><td>{{ (s.start or missing)|one_line }}</td><td></td></tr>{% for i in s.iterations %}
<tr><td>iteration {{ i.iteration }}</td><td>{{ (i.weights or missing)|one_line }}</td>
<td>{{ (i.reference or missing)|one_line }}</td></tr>{% endfor %}
</tbody></table>
{% if notes %}
<h2>Notes</h2>
<ul>{% for note in notes %}<li>{{ note|one_line }}</li>{% endfor %}</ul>
{% endif %}
</body>
</html>
"""


def render(
    summary: Summary, samples: list[Any], figures: list[Figure], notes: list[str], figure_note: str | None
) -> str:
    """Return the page's HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "one_line": lambda value: printable(str(value), newlines="show"),
        "visible": printable,
        "fact": fact,
        "rate": lambda value: "" if value is None else f"win rate {percent(value)}",
    }
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.from_string(PAGE).render(
        s=summary,
        policy=policy,
        style=Markup(STYLE),  # ours, and its digest in the policy must be that of the very text
        tables=tables(summary),
        samples=samples,
        figures=figures,
        notes=notes,
        figure_note=figure_note,
        missing=MISSING,
    )
