"""The documentation page: the OpenAPI document as plain HTML, complete without any network."""

import html
import json
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{background:#f4f4f6;padding:.8rem;overflow:auto;border-radius:6px}
section{border-top:1px solid #ccc;padding:.5rem 0}
td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}
b.verb{background:#234;color:#fff;border-radius:4px;padding:0 .5em;font-size:.8em}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}pre{background:#24272e}}
"""
EXAMPLE = (
    "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' -H 'Accept: image/png' \\\n"
    "  'localhost:8000/v1/images:segment?classes=dog,grass,sky' -o mask.png"
)


def docs_page(document: dict[str, Any]) -> str:
    """The whole page for an OpenAPI document."""
    info = document["info"]
    sections = [
        _operation(path, verb, operation)
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    ]
    schemas = "".join(
        f"<details id='{_text(name)}'><summary><code>{_text(name)}</code></summary>"
        f"<pre>{_text(json.dumps(schema, indent=1))}</pre></details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{_text(info['title'])}</title><style>{STYLE}</style>"
        f"<h1>{_text(info['title'])}</h1><p>{_text(info['description'])}</p>"
        f"<pre>{_text(EXAMPLE)}</pre>"
        "<p>The same as a document: <a href='/openapi.json'>/openapi.json</a></p>"
        f"{''.join(sections)}<h2>Schemas</h2>{schemas}</html>"
    )


def _operation(path: str, verb: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{_text(p['name'])}</code></td><td>{_text(p['in'])}</td>"
        f"<td>{_text(p.get('description', ''))}{_default(p['schema'])}</td></tr>"
        for p in operation.get("parameters", ())
    )
    bodies = "".join(
        f"<li><code>{_text(media)}</code> {_schema(content)}</li>"
        for media, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        f"<tr><td>{_text(status)}</td><td>{_text(answer['description'])}</td><td>"
        + ", ".join(f"<code>{_text(media)}</code>" for media in answer.get("content", ()))
        + "</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<section><h2><b class='verb'>{_text(verb.upper())}</b> <code>{_text(path)}</code></h2>"
        f"<p>{_text(operation.get('description', ''))}</p>"
        + (f"<h3>Body</h3><ul>{bodies}</ul>" if bodies else "")
        + (f"<h3>Parameters</h3><table>{parameters}</table>" if parameters else "")
        + f"<h3>Answers</h3><table>{answers}</table></section>"
    )


def _schema(content: dict[str, Any]) -> str:
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f"<a href='#{_text(name)}'>{_text(name)}</a>" if name else ""


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return "" if default in (None, []) else f" Default <code>{_text(json.dumps(default))}</code>."


def _text(value: object) -> str:
    return html.escape(str(value))
