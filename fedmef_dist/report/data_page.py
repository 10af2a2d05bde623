"""The page of the command ``data``: one file of HTML with all pictures, for any browser, without a network."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from fedmef_dist.data.inspection import ClassRow, Clients, Sheet, TextLook, Twins
from fedmef_dist.report.pages import render
from fedmef_dist.report.partition import partition_figure

Fact = tuple[str, str]

_SIDE = 48  # pixels of the screen that an image has at least
_GAP = 4
_EXTREMES = 10


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
    return _page(title, facts, clients, names, classes=classes, strips=strips, twins=twins)


def text_page(title: str, facts: Sequence[Fact], look: TextLook, clients: Clients | None) -> str:
    """The page of a text."""
    return _page(title, facts, clients, {}, look=look)


def _page(title: str, facts: Sequence[Fact], clients: Clients | None, names: dict[int, str], **shown: object) -> str:
    parts: dict[str, object] = {"classes": (), "strips": {}, "twins": (), "look": None, **_client_parts(clients, names)}
    return render("data.html.jinja", title, facts=facts, **{**parts, **shown})


def _client_parts(clients: Clients | None, names: dict[int, str]) -> dict[str, object]:
    if clients is None:
        return {"clients": None, "figure": "", "extremes": ()}
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
    """The images, uint8 (n, H, W, C), in a row, each enlarged by a whole factor where small; a PNG in base 64.

    Three channels are colours; of any other number the mean is shown, in grey.
    """
    from PIL import Image

    factor = max(1, -(-_SIDE // images.shape[1]))
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = large.shape
    paper = np.full((height, count * (width + _GAP) - _GAP, channels), 230, dtype=np.uint8)
    for place, image in enumerate(large):
        start = place * (width + _GAP)
        paper[:, start : start + width] = image
    content = io.BytesIO()
    shown = paper if channels == 3 else paper.mean(axis=2).round().astype(np.uint8)
    Image.fromarray(shown).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
