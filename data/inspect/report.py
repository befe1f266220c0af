"""A survey as lines for a terminal, and as one HTML file that needs nothing else."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from data import shortened
from data.reading.splits import Splits
from data.reading.thumbnail import thumbnail

MOST_LINES = 10  # of each list in the terminal
MOST_SHOWN = 200  # entries of each list in the HTML file
MOST_IN_GROUP = 8
EXAMPLES = 6  # thumbnails of each class
KINDS = {"formats": "formats", "modes": "modes", "orientations": "EXIF orientations (1 is upright)"}
STYLE = """body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}
.row{display:flex;flex-wrap:wrap;gap:.8em;border-top:1px solid #ccc;padding:.6em 0}
figure{margin:0;width:11em;overflow-wrap:anywhere;font-size:12px}.warning{color:#a30}"""


def lines(found: dict[str, Any]) -> list[str]:
    """The survey in short. Names are others' text: whoever prints the lines escapes control characters."""
    files = found["files"]
    out = [f"data: {note}" for note in found["notes"]] + list(found["warnings"])
    for split, counts in found["images"].items():
        listed = shortened([f"{count} {_flat(name)}" for name, count in counts.items()], 2 * MOST_LINES)
        out.append(f"{split}: {sum(counts.values())} images: {listed}")
    if sizes := files["sizes"]:
        out.append("sizes: " + ", ".join(f"{name} {width}x{height}" for name, (width, height) in sizes.items()))
    for kind, title in KINDS.items():
        out.append(f"{title}: {', '.join(f'{count} {name}' for name, count in files[kind].items())}")
    out += _listed("undecodable", [_flat(item["problem"]) for item in found["undecodable"]])
    for kind in ("exact_duplicates", "near_duplicates"):
        out += _listed(kind.replace("_", " "), [_group_line(group) for group in most_important_first(found[kind])])
    if "suspicious_labels" in found:
        out += _listed(
            f"suspicious labels ({found['about_suspicious_labels']})",
            [_doubt_line(item) for item in found["suspicious_labels"]],
        )
    return out


def most_important_first(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups across the splits and with contradictory labels before the others."""
    return sorted(groups, key=lambda group: -(group["across_splits"] + group["contradictory_labels"]))


def html(found: dict[str, Any], splits: Splits) -> str:
    """The whole survey as a page, with thumbnails inside it; every name is escaped."""

    def picture(item: dict[str, Any]) -> str:
        split = splits.train if item["split"] == "train" else splits.validation
        return _figure(thumbnail(split.read(item["index"])), item)

    rows = [(name, *(counts[name] for counts in found["images"].values())) for name in found["classes"]]
    parts = [f"<h1>{_safe(found['dataset'])}</h1>"]
    parts += [f"<p>{_safe(note)}</p>" for note in found["notes"]]
    parts += [f'<p class="warning">{_safe(line)}</p>' for line in found["warnings"]]
    parts.append(_table(["class", *found["images"]], rows))
    files = found["files"]
    parts.append(_table(["size", "width", "height"], [(name, *size) for name, size in files["sizes"].items()]))
    for kind, title in KINDS.items():
        parts.append(_table([title, "images"], list(files[kind].items())))
    parts += _section("Examples", _examples(found, splits), lambda items: "".join(map(picture, items)))
    parts += _section("Undecodable", found["undecodable"], lambda item: _safe(item["problem"]))
    for kind, title in (("exact_duplicates", "Exact duplicates"), ("near_duplicates", "Near duplicates")):
        parts += _section(title, most_important_first(found[kind]), lambda group: _group_html(group, picture))
    if "suspicious_labels" in found:
        title = f"Suspicious labels ({found['about_suspicious_labels']})"
        parts += _section(
            title, found["suspicious_labels"], lambda item: picture(item) + f"<p>{_safe(_doubt_line(item))}</p>"
        )
    head = f'<meta charset="utf-8"><title>{_safe(found["dataset"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _examples(found: dict[str, Any], splits: Splits) -> list[list[dict[str, Any]]]:
    """The first training images of each class that can be decoded."""
    bad = {(item["split"], item["index"]) for item in found["undecodable"]}
    by_class: list[list[dict[str, Any]]] = [[] for _ in splits.label_names]
    for index, label in enumerate(splits.train.labels):
        if len(by_class[label]) < EXAMPLES and ("train", index) not in bad:
            name = splits.train.image_name(index)
            by_class[label].append({"split": "train", "index": index, "name": name, "class": splits.label_names[label]})
    return [items for items in by_class if items]


def _group_html(group: dict[str, Any], picture: Callable[[dict[str, Any]], str]) -> str:
    shown, more = group["images"][:MOST_IN_GROUP], len(group["images"]) - MOST_IN_GROUP
    flags = f'<p class="warning">{_safe(_flags(group))}</p>'
    return flags + "".join(picture(item) for item in shown) + (f"<p>and {more} more</p>" if more > 0 else "")


def _figure(encoded: str, item: dict[str, Any]) -> str:
    caption = f"{item['split']}, {item['class']}: {item['name']}"
    picture = f'<img alt="" src="data:image/jpeg;base64,{encoded}">'
    return f"<figure>{picture}<figcaption>{_safe(caption)}</figcaption></figure>"


def _section(title: str, items: Sequence[Any], show: Callable[[Any], str]) -> list[str]:
    parts = [f"<h2>{_safe(title)}: {len(items)}</h2>"]
    parts += [f'<div class="row">{show(item)}</div>' for item in items[:MOST_SHOWN]]
    if len(items) > MOST_SHOWN:
        parts.append(f"<p>and {len(items) - MOST_SHOWN} more, in inspect.json</p>")
    return parts


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    cells = ["".join(f"<th>{_safe(cell)}</th>" for cell in head)]
    cells += ["".join(f"<td>{_safe(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _listed(title: str, items: Sequence[str]) -> list[str]:
    more = [f"  and {len(items) - MOST_LINES} more"] if len(items) > MOST_LINES else []
    return [f"{title}: {len(items) or 'none'}", *(f"  {item}" for item in items[:MOST_LINES]), *more]


def _flags(group: dict[str, Any]) -> str:
    said = [("in both splits", group["across_splits"]), ("contradictory labels", group["contradictory_labels"])]
    return ", ".join(text for text, true in said if true)


def _group_line(group: dict[str, Any]) -> str:
    named = [f"{item['split']} {_flat(item['name'])} ({_flat(item['class'])})" for item in group["images"]]
    flags = _flags(group)
    return f"{flags + ': ' if flags else ''}{shortened(named, 4, ' = ')}"


def _doubt_line(item: dict[str, Any]) -> str:
    said = f"labelled {_flat(item['class'])} ({item['of_label']:.3f}), the model says {_flat(item['predicted'])}"
    return f"{item['split']} {_flat(item['name'])}: {said} ({item['probability']:.3f})"


def _flat(text: str) -> str:
    """A name in one line."""
    return " ".join(text.split())


def _safe(value: Any) -> str:
    """As text of a page: escaped, and without characters that a page must not hold or that turn the text around."""
    shown = "".join(char if char.isprintable() or char == " " else f"\\u{ord(char):04x}" for char in str(value))
    return escape(shown, quote=True)
