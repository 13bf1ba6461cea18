"""The tables of docs/api.md, made from the OpenAPI document.

People write the page; what it says of parameters, answers, fields and errors stands between
comments, and `python -m tests.service.api_reference` makes it anew from what the service says of
itself. A test compares the two, so that neither says what the other does not. A block begins with

    <!-- operation: GET /v1/models -->          or several, if the same is said of them
    <!-- fields: ModelCard -->
    <!-- fields: B beyond A -->                 those of B that A has not
    <!-- errors: all -->

and ends with `<!-- end -->`.
"""

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx

from service import errors
from tests.service.fakes import FakeEngine
from tests.service.harness import make_service

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"(<!-- (operation|fields|errors): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
ERROR = "#/components/schemas/ErrorBody"
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
    "maxLength": "of at most {} characters",
}

Json = dict[str, Any]


def read_document() -> Json:
    """Return the OpenAPI document that the service serves."""

    async def read() -> Json:
        transport = httpx.ASGITransport(make_service(FakeEngine()).api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            document: Json = (await client.get("/openapi.json")).json()
            return document

    return asyncio.run(read())


def names_on(page: str, kind: str) -> list[str]:
    """Return which operations, or whose fields, a page describes, in its order."""
    names = [found[3] for found in BLOCK.finditer(page) if found[2] == kind]
    if kind == "operation":
        return [operation for name in names for operation in name.split(", ")]
    return [name.partition(" beyond ")[0] for name in names]


def operations_in(document: Json) -> list[str]:
    """Return the operations of a document."""
    return [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    ]


def fill(page: str, document: Json) -> str:
    """Return the page with every block made anew.

    Raises: KeyError for an operation or a schema that the document does not have, ValueError for
    operations in one block that are not alike.
    """

    def block(found: re.Match[str]) -> str:
        start, kind, name, _, end = found.groups()
        if kind == "errors":
            return f"{start}{_errors()}{end}"
        make = _operations if kind == "operation" else _fields
        return f"{start}{make(name, document)}{end}"

    return BLOCK.sub(block, page)


def _operations(names: str, document: Json) -> str:
    made = {name: _operation(name, document) for name in names.split(", ")}
    if len(set(made.values())) > 1:
        raise ValueError(f"{names} are not alike: they need a block each")
    return next(iter(made.values()))


def _operation(name: str, document: Json) -> str:
    method, path = name.split(" ")
    operation = document["paths"][path][method.lower()]
    schemas = document["components"]["schemas"]
    parts = []
    if parameters := operation.get("parameters"):
        rows = [
            [
                _code(given["name"]),
                given["in"],
                _asked(given["schema"], schemas, is_required=given.get("required", False)),
                given.get("description", ""),
            ]
            for given in parameters
        ]
        parts.append(_table(["parameter", "in", "type", "meaning"], rows))
    if body := operation.get("requestBody"):
        kinds = [_content(kind, content, schemas) for kind, content in body["content"].items()]
        parts.append(f"Body: {' or '.join(kinds)}\n")
    parts.append(_table(["status", "answer"], _answers(operation["responses"], schemas)))
    return "\n".join(parts)


def _answers(responses: Json, schemas: Json) -> Iterable[list[str]]:
    """Yield a row for each success, and one for all statuses that are answered with an error."""
    failures = []
    for status, response in responses.items():
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema", {}).get("$ref") == ERROR:
            failures.append(status)
            continue
        kinds = [_content(kind, each, schemas) for kind, each in content.items()]
        headers = ", ".join(_code(header) for header in response.get("headers", {}))
        said = "; ".join([*kinds, *([f"headers {headers}"] if headers else [])])
        yield [status, said or response["description"]]
    if failures:
        yield [", ".join(failures), "[an error](#errors)"]


def _content(media_type: str, content: Json, schemas: Json) -> str:
    schema = content.get("schema", {})
    is_named = "$ref" in schema or "anyOf" in schema
    return _code(media_type) + (f" {_type(schema, schemas)}" if is_named else "")


def _fields(name: str, document: Json) -> str:
    schemas = document["components"]["schemas"]
    name, _, other = name.partition(" beyond ")
    known = schemas[other]["properties"] if other else {}
    schema = schemas[name]
    required = schema.get("required", ())
    rows = []
    for field, described in schema["properties"].items():
        if field in known:
            continue
        if name.endswith("Request"):
            type_name = _asked(described, schemas, is_required=field in required)
        else:
            type_name = _type(described, schemas)
        rows.append([_code(field), type_name, described.get("description", "")])
    return _table(["field", "type", "meaning"], rows)


def _errors() -> str:
    """Return a row for each kind of error, in the words of the tree that draws them."""
    drawn = re.findall(r"[├└]── (\w+) +(\d{3}) +(.+)", errors.__doc__ or "")
    rows = [
        [status, _code(getattr(errors, name).code), text]
        for name, status, text in drawn
        if name != errors.ClientDisconnected.__name__  # nobody sees it
    ]
    return _table(["status", "code", "meaning"], rows)


def _asked(schema: Json, schemas: Json, *, is_required: bool) -> str:
    """Return the type of what a client gives: null is the same as leaving it out."""
    said = _type(schema, schemas).removesuffix(" or null")
    if is_required:
        return f"{said}, required"
    default = schema.get("default")
    if default in (None, "", {}, []):
        return said
    shown = default if isinstance(default, str) else json.dumps(_number(default))
    return f"{said}, default {_code(shown)}"


def _type(schema: Json, schemas: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        is_object = "properties" in schemas[name]
        return f"[{name}](#{name.lower()})" if is_object else _type(schemas[name], schemas)
    if "anyOf" in schema:
        return " or ".join(_type(each, schemas) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(map(_code, schema.get("enum") or [schema["const"]]))
    if "items" in schema:
        return f"list of {_type(schema['items'], schemas)}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_type(values, schemas)}"
    bounds = [word.format(_number(schema[key])) for key, word in BOUNDS.items() if key in schema]
    return " ".join([schema.get("type", "any"), *bounds])


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(value: object) -> str:
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text("utf-8"), read_document()), "utf-8")
