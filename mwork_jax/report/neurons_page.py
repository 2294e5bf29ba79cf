"""The page of `mwork neurons`: what each neuron reads and writes, with a search and filters.

It works from a disk: one file without requests. Its script is a small one of this project, which the page's policy lets
run by its hash and nothing else; all the text is there without it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from urllib.parse import urlencode

from mwork_jax.neurons import GROUPS
from mwork_jax.report.html_head import html_head, packaged, safe
from mwork_jax.report.language_names import direction_of, full_name, name_of
from mwork_jax.results import NeuronContext, NeuronReading, NeuronResults, TokenWeight

FILE = "neurons.html"  # beside report.html, which links to it
_GROUP_TITLES = {
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "ffn_up": "feed-forward, up",
    "ffn_down": "feed-forward, down",
}
_NO_TOKENS = "does not apply: a query, key or value neuron writes nothing to the residual stream itself"


def fragment(language: str, group: str = "", layer: int | None = None) -> str:
    """The address of the page, beside it, that shows only the neurons of one language's set, in one group and layer
    (from 1, as the report's figures have it) where these are given."""
    filters = {"language": language, "group": group, "layer": layer}
    return f"{FILE}#{urlencode({name: value for name, value in filters.items() if value})}"


def neurons_page(results: NeuronResults) -> str:
    """The whole page as HTML."""
    script, css = packaged("neurons_page.js"), packaged("page.css") + packaged("neurons_page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    model = results.provenance.model.source.rstrip("/").rsplit("/", 1)[-1]
    return f"""{html_head(f"What neurons read: {model}", policy, css)}
<body>
<header>
<h1>What neurons of {safe(model)} read</h1>
{_lead(results)}
{_form(results)}
<p id="count" class="note" role="status">{len(results.readings)} neurons</p>
</header>
<main>
<p id="nothing" hidden>No neuron here fits. Others than the strongest are read with <code>mwork neurons --top</code>,
other groups with <code>--group</code>.</p>
{"".join(_card(reading, results) for reading in results.readings)}
{_provenance(results)}
</main>
<footer><p>Written by mwork-jax, an implementation of PLND and MWork (Zhao et al., NeurIPS 2024).</p></footer>
<script>{script}</script>
</body>
</html>
"""


def _shown(text: str) -> str:
    """Text of a document or a token, with signs for what would break its line."""
    return safe(text.replace("\r\n", "\n").replace("\n", "⏎").replace("\r", "⏎").replace("\t", "⇥"))


def _lead(results: NeuronResults) -> str:
    settings = results.provenance.settings
    sets = ", ".join(name_of(language) for language in settings.languages)
    words = (
        f"The {settings.top} most important neurons of each set ({sets}) and group, the contexts in which each acts "
        "most in every language, and the tokens that it promotes and suppresses. A context's number is the activation "
        "at the marked token: act(gate) · up of a feed-forward neuron, the output of a query, key or value neuron. "
        "Active: the share of a language's tokens with act(gate) above 0. Promoted: the tokens whose logits rise most "
        "with a positive activation, through the neuron's column of the down projection, the norms' weights and the "
        "head; a negative activation raises those that are suppressed."
    )
    return f'<p class="lead">{safe(words)}</p>'


def _form(results: NeuronResults) -> str:
    """The search and the filters; hidden where the script does not run."""
    readings = results.readings
    languages = {lang: name_of(lang) for lang in dict.fromkeys(lang for r in readings for lang in r.importance)}
    used = {group for reading in readings for group in reading.groups}
    groups = {group: _GROUP_TITLES[group] for group in GROUPS if group in used}
    layers = {str(layer + 1): str(layer + 1) for layer in sorted({reading.layer for reading in readings})}
    search = '<label class="search">Search<input name="q" type="search" placeholder="text, or layer/index"></label>'
    return (
        f"<form hidden>{search}{_select('language', 'Neurons of', languages)}{_select('group', 'Group', groups)}"
        f'{_select("layer", "Layer", layers)}<button type="reset">Show all</button></form>'
    )


def _select(name: str, title: str, options: dict[str, str]) -> str:
    choices = "".join(f'<option value="{safe(value)}">{safe(shown)}</option>' for value, shown in options.items())
    return f'<label>{title}<select name="{name}"><option value="">all</option>{choices}</select></label>'


def _card(reading: NeuronReading, results: NeuronResults) -> str:
    """One neuron. Layers count from 1, as in the report's figures, and from 0 in what Python takes."""
    layer = reading.layer + 1
    kinds = " and ".join(_GROUP_TITLES[group] for group in reading.groups)
    kinds = kinds.replace(" and feed-forward, ", " and ")
    importance = ", ".join(
        name_of(lang) + ("" if value is None else f" (importance {value:.3g})")
        for lang, value in reading.importance.items()
    )
    own = [lang for lang in results.provenance.data if lang in reading.importance]
    rest = [lang for lang in results.provenance.data if lang not in reading.importance]
    place = f"Of {importance}. In Python: layer {reading.layer}, index {reading.index} of {', '.join(reading.groups)}."
    return (
        f'<article data-name="{layer}/{reading.index}" data-groups="{" ".join(reading.groups)}" '
        f'data-languages="{safe(" ".join(reading.importance))}">'
        f"<h2>{layer}/{reading.index} <small>layer {layer}, neuron {reading.index}; {kinds}</small></h2>"
        f'<p class="note">{safe(place)}</p><dl class="made"><dt>promotes</dt><dd>{_tokens(reading.promotes)}</dd>'
        f"<dt>suppresses</dt><dd>{_tokens(reading.suppresses)}</dd></dl>"
        f"{''.join(_language(lang, reading, lang in own[:2]) for lang in (*own, *rest))}</article>\n"
    )


def _tokens(tokens: Iterable[TokenWeight] | None) -> str:
    if tokens is None:
        return _NO_TOKENS
    return " ".join(
        f'<bdi title="{token.weight:+.3g}">{_shown(token.token) if token.token.strip() else "␣"}</bdi>'
        for token in tokens
    )


def _language(language: str, reading: NeuronReading, opened: bool) -> str:
    did = reading.by_language[language]
    parts = [] if did.active is None else [f"active at {100 * did.active:.1f} % of the tokens"]
    parts += [f"at most {did.contexts[0].value:.3g}"] if did.contexts else ["never acted"]
    contexts = "".join(_context(context, language) for context in did.contexts)
    title = f"<b>{safe(full_name(language))}</b>: {', '.join(parts)}"
    return (
        f'<details{" open" if opened else ""}><summary>{title}</summary><ol class="contexts">{contexts}</ol></details>'
    )


def _context(context: NeuronContext, language: str) -> str:
    where = f"document {context.document + 1}, token {context.position + 1}"
    token = _shown(context.token) if context.token else "␣"
    return (
        f'<li><span class="n" title="{where}">{context.value:.3g}</span><bdi dir="{direction_of(language)}">'
        f"{_shown(context.before)}<mark>{token}</mark>{_shown(context.after)}</bdi></li>"
    )


def _provenance(results: NeuronResults) -> str:
    made = results.provenance
    facts = [
        ("Model", str(made.model)),
        ("Data", "; ".join(f"{lang}: {data.items} documents of {data.origin}" for lang, data in made.data.items())),
        ("Sets", "; ".join(f"{lang}: {info.count} neurons, {info.rule}" for lang, info in results.neurons.items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("Command", " ".join(made.command)),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{safe(value)}</dd>" for name, value in facts if value)
    return f'<section id="made"><h2>What made this</h2><dl class="made">{rows}</dl></section>'
