"""What schemathesis cannot know of evenkv from /openapi.json alone."""

import json
import os

import schemathesis

# The view of the cluster that is driven, with commas.
VIEW = os.environ["EVENKV_VIEW"]
RESERVED = ["keys", "key-count", "shards", "view", "view-change", "audit"]


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    """A text is sent as it is; of anything else JSON is made, in a line of its own."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    return json.dumps(value).encode() + b"\n"


@schemathesis.hook.apply_to(path_regex=r"^/(kv-store|kvs)/\{key\}$")
def filter_path_parameters(context, path_parameters):
    # These names are other paths of the document, which stand before it.
    return (path_parameters or {}).get("key") not in RESERVED


@schemathesis.hook
def filter_case(context, case):
    # No schema says that two parameters must not differ: the answer is 400.
    query, headers = case.query or {}, case.headers or {}
    if "ttl" in query and "Evenkv-TTL" in headers:
        return False
    # To a header that is not ASCII nothing is answered (docs/LISTENER.md): tests/listener.rs shows that.
    return all(str(value).isascii() for value in headers.values())


@schemathesis.hook.apply_to(method="PUT", path_regex="view-change")
def map_body(context, body):
    """Names no nodes but those that are driven, and changes no limits or factors for good: the driven node would ask whoever is named."""
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    if "view" in changed:
        changed["view"] = own_nodes(changed["view"])
    if any(changed.get(name) is not None for name in ("limits", "repl-factor", "accept-loss")):
        changed.setdefault("dry-run", True)
        if changed["dry-run"] is None or changed["dry-run"] is False:
            changed["dry-run"] = True
    return changed


def own_nodes(view):
    if isinstance(view, str):
        return VIEW if any(letter.isalnum() for letter in view) else view
    if isinstance(view, list) and all(isinstance(node, str) for node in view):
        return VIEW.split(",") if any(letter.isalnum() for node in view for letter in node) else view
    return view


OPERATIONS = ["put", "get", "delete", "touch"]


@schemathesis.hook.apply_to(method="POST", path="/v1/batch")
def map_body(context, body):  # noqa: F811
    """Of every other text operations are made, since hardly any text is one."""
    if not isinstance(body, str) or len(body) % 2 == 0:
        return body
    made = []
    for place, letter in enumerate(body):
        line = {"op": OPERATIONS[ord(letter) % 4], "key": body[: place + 1][-3:]}
        if line["op"] == "put":
            line["value"] = body
        if line["op"] == "touch" or place % 3 == 1:
            line["ttl"] = 1 + ord(letter)
        if place % 5 == 1:
            line["if-none-match"] = "*"
        made.append(json.dumps(line))
    return "\n".join(made)
