"""The built-in functions that a policy may call, with their number of arguments: those that both
engines have, answer alike and make no decision depend on anything but its input.

Left out on purpose: what reaches outside or is not repeatable (http, net, opa.runtime, rand, uuid,
time.now_ns, print, trace), and what the two engines answer differently. tests/contract compares
every entry on both engines, and pins where values outside ASCII or between integers still differ.
"""

from __future__ import annotations

from typing import Final

ALLOWED: Final[dict[str, int]] = {
    "abs": 1, "ceil": 1, "floor": 1, "round": 1, "numbers.range": 2, "to_number": 1,
    "array.concat": 2, "array.reverse": 1, "array.slice": 3,
    "base64.decode": 1, "base64.encode": 1, "base64.is_valid": 1,
    "base64url.decode": 1, "base64url.encode": 1, "base64url.encode_no_pad": 1,
    "hex.decode": 1, "hex.encode": 1,
    "bits.and": 2, "bits.lsh": 2, "bits.negate": 1, "bits.or": 2, "bits.rsh": 2, "bits.xor": 2,
    "count": 1, "max": 1, "min": 1, "product": 1, "sort": 1, "sum": 1,
    "intersection": 1, "union": 1,
    "is_array": 1, "is_boolean": 1, "is_null": 1, "is_number": 1, "is_object": 1, "is_set": 1,
    "is_string": 1, "type_name": 1,
    "concat": 2, "contains": 2, "endswith": 2, "format_int": 2, "indexof": 2, "indexof_n": 2,
    "lower": 1, "replace": 3, "split": 2, "sprintf": 2, "startswith": 2, "substring": 3,
    "strings.any_prefix_match": 2, "strings.any_suffix_match": 2, "strings.count": 2,
    "strings.replace_n": 2, "strings.reverse": 1,
    "trim": 2, "trim_left": 2, "trim_prefix": 2, "trim_right": 2, "trim_space": 1,
    "trim_suffix": 2, "upper": 1,
    "glob.match": 3,
    "graph.reachable": 2,
    "json.filter": 2, "json.is_valid": 1, "json.patch": 2, "json.remove": 2,
    "json.unmarshal": 1,
    "object.filter": 2, "object.get": 3, "object.keys": 1, "object.remove": 2,
    "object.subset": 2, "object.union": 2, "object.union_n": 1,
    "regex.find_n": 3, "regex.is_valid": 1, "regex.match": 2, "regex.replace": 3,
    "regex.split": 2,
    "semver.compare": 2, "semver.is_valid": 1,
    "time.add_date": 4, "time.clock": 1, "time.date": 1, "time.diff": 2,
    "time.parse_duration_ns": 1, "time.parse_rfc3339_ns": 1, "time.weekday": 1,
    "units.parse": 1, "units.parse_bytes": 1,
    "urlquery.decode": 1, "urlquery.encode": 1,
    "walk": 2,
}  # fmt: skip

#: What people look for first, and what to use instead.
HINTS: Final[dict[str, str]] = {
    "time.now_ns": "use input.context.now_ns, so that a replay is exact",
    "print": "policies are evaluated without an output",
    "trace": "policies are evaluated without an output",
}
