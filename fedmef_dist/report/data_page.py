"""The page of the command ``data``: one file of HTML with all pictures, for any browser, without a network."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.data.inspection import ClassRow, Clients, Sheet, TextLook, Twins
from fedmef_dist.report.partition import partition_figure

if TYPE_CHECKING:
    from jinja2 import Template

Fact = tuple[str, str]

_SIDE = 48  # pixels of the screen that an image has at least
_GAP = 4
_EXTREMES = 10

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } .sheet { image-rendering: pixelated; background: #e6e6e6; }
code, pre { font: 13px/1.4 ui-monospace, monospace; }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem; }
.scroll { overflow-x: auto; } td.wrap { overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1>
<table>{% for name, value in facts %}<tr><th>{{ name }}</th><td class="wrap">{{ value }}</td></tr>
{% endfor %}</table>
{% if classes %}<h2>Classes, as the network sees them</h2>
<p>Of each class the same training images: as they are, and as they are trained on in one epoch.</p>
<div class="scroll"><table><tr><th>class</th><th class="n">training</th><th class="n">test</th>
<th class="n">constant</th><th>as they are</th><th>as trained on</th></tr>
{% for row in classes %}<tr><td>{{ row.name }}</td><td class="n">{{ "{:,}".format(row.train) }}</td>
<td class="n">{{ "{:,}".format(row.test) }}</td><td class="n">{{ "{:,}".format(row.constant) }}</td>
{% for strip in strips.get(row.label, ()) %}<td><img class="sheet" alt="{{ strip[0] }} images of class {{ row.name }}"
src="data:image/png;base64,{{ strip[1] }}"></td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if twins %}<h2>Equal images</h2>
<table><tr><th>samples</th><th>labels</th><th>files</th></tr>
{% for group in twins %}<tr><td>{{ group.places|join(", ") }}</td><td>{{ group.labels|join(", ") }}</td>
<td class="wrap">{{ group.files|join(", ") }}</td></tr>{% endfor %}</table>{% endif %}
{% if look %}<h2>Characters</h2>
<p>With how often each stands in the training text, the rarest first.</p>
<p>{% for character, count in look.characters %}<code>{{ character|pprint }}</code>&nbsp;{{ "{:,}".format(count) }}
{% endfor %}</p>
<h2>Samples</h2>
{% for sample in look.samples %}<pre>{{ sample }}</pre>{% endfor %}{% endif %}
{% if clients %}<h2>Clients</h2>
<p><img alt="Samples of each client, and its labels" src="data:image/png;base64,{{ figure }}"></p>
<table><tr><th class="n">client</th><th class="n">samples</th><th>commonest labels</th></tr>
{% for row in extremes %}<tr><td class="n">{{ row[0] }}</td><td class="n">{{ row[1] }}</td><td>{{ row[2] }}</td></tr>
{% endfor %}</table>{% endif %}
</body></html>
"""


def image_page(
    title: str,
    facts: Sequence[Fact],
    classes: Sequence[ClassRow],
    sheets: Sequence[Sheet],
    twins: Sequence[Twins],
    clients: Clients | None,
) -> str:
    """The page of a set of images."""
    strips = {sheet.label: (("plain", _strip(sheet.plain)), ("augmented", _strip(sheet.augmented))) for sheet in sheets}
    names = {row.label: row.name for row in classes}
    shown = _client_parts(clients, names)
    return _template().render(title=title, facts=facts, classes=classes, strips=strips, twins=twins, **shown)


def text_page(title: str, facts: Sequence[Fact], look: TextLook, clients: Clients | None) -> str:
    """The page of a text."""
    return _template().render(title=title, facts=facts, look=look, **_client_parts(clients, {}))


def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    defaults: dict[str, object] = {
        "classes": (),
        "strips": {},
        "twins": (),
        "look": None,
        "clients": None,
        "figure": "",
        "extremes": (),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_PAGE, globals=defaults)


def _client_parts(clients: Clients | None, names: dict[int, str]) -> dict[str, object]:
    if clients is None:
        return {}
    figure = partition_figure(clients.sizes, clients.counts)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return {
        "clients": clients,
        "figure": base64.b64encode(content.getvalue()).decode(),
        "extremes": _extremes(clients, names),
    }


def _extremes(clients: Clients, names: dict[int, str]) -> list[tuple[str, str, str]]:
    """The smallest and the largest clients: number, samples, commonest labels."""
    order = np.argsort(clients.sizes, kind="stable")
    if len(order) > 2 * _EXTREMES:
        order = np.concatenate([order[:_EXTREMES], order[-_EXTREMES:]])
    rows = []
    for place in order.tolist():
        counts = clients.counts[place]
        common = [label for label in np.argsort(-counts, kind="stable")[:3].tolist() if counts[label]]
        mix = ", ".join(f"{names.get(label, label)} {counts[label]:,}" for label in common)
        rows.append((f"{clients.numbers[place]:,}", f"{counts.sum():,}", mix))
    return rows


def _strip(images: np.ndarray) -> str:
    """The images, uint8 (n, H, W, C), in a row, each enlarged by a whole factor where small; a PNG in base 64."""
    from PIL import Image

    factor = max(1, -(-_SIDE // images.shape[1]))
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = large.shape
    paper = np.full((height, count * (width + _GAP) - _GAP, channels), 230, dtype=np.uint8)
    for place, image in enumerate(large):
        start = place * (width + _GAP)
        paper[:, start : start + width] = image
    content = io.BytesIO()
    Image.fromarray(paper[..., 0] if channels == 1 else paper).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
