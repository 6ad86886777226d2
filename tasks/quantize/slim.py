"""Slimming: an ONNX file without what no runtime needs, the same bytes wherever it is made.

Names, traces, shapes, defaults and duplicates go; the arithmetic stays: logits are bit-equal. Input
and output names stay, since they are the contract. Nothing here knows what a student is.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import onnx
from onnx import numpy_helper

ALPHABET = string.ascii_letters
ONES, ZEROS = {1}, {0}
IMPLIED = {"dilations": ONES, "strides": ONES, "pads": ZEROS}  # what an absent list means


def slim(model: onnx.ModelProto) -> bytes:
    """`model` stripped, its equal initializers shared and its inner names shortened, serialised."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    strip(small)
    _drop_defaults(small.graph)
    _share(small.graph)
    _rename(small.graph, short_names(), keep_weights=False)
    return serialise(small)


def serialise(model: onnx.ModelProto) -> bytes:
    """Deterministic bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def strip(model: onnx.ModelProto) -> None:
    """Remove, in place, what says where and how `model` was made: metadata, traces, shapes."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "stillhouse", ""
    model.doc_string, model.domain = "", ""
    graph = model.graph
    graph.name, graph.doc_string = "g", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        node.name, node.doc_string = "", ""
        del node.metadata_props[:]
        if node.domain == "ai.onnx":
            node.domain = ""
    used = {node.domain for node in graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def plain_names(model: onnx.ModelProto) -> None:
    """Name, in place, every value between nodes v0, v1, ...; weights keep their names."""
    _rename(model.graph, (f"v{i}" for i in range(10**9)), keep_weights=True)


def short_names() -> Iterator[str]:
    """a, b, ..., Z, aa, ba, ...: as few letters as possible.

    >>> names = short_names()
    >>> [next(names) for _ in range(54)][-3:]
    ['Z', 'aa', 'ba']
    """
    length = 1
    while True:
        for number in range(len(ALPHABET) ** length):
            letters = []
            for _ in range(length):
                number, digit = divmod(number, len(ALPHABET))
                letters.append(ALPHABET[digit])
            yield "".join(letters)
        length += 1


def _drop_defaults(graph: onnx.GraphProto) -> None:
    """Attributes that say what their absence says. (Zero points that are zero stay: ONNX Runtime
    fuses a Gemm to int8 only where they are explicit.)"""
    for node in graph.node:
        schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
        kept = [a for a in node.attribute if not _implied(a, schema.attributes.get(a.name))]
        del node.attribute[:]
        node.attribute.extend(sorted(kept, key=lambda a: a.name))


def _implied(attribute: onnx.AttributeProto, known: onnx.defs.OpSchema.Attribute | None) -> bool:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.INTS and attribute.name in IMPLIED:
        return set(value) == IMPLIED[attribute.name]
    if known is None or not known.default_value.type:
        return False
    return bool(onnx.helper.get_attribute_value(known.default_value) == value)


def _share(graph: onnx.GraphProto) -> None:
    """One initializer for equal ones, each in raw bytes; unused ones go."""
    used = {name for node in graph.node for name in node.input}
    first: dict[tuple[int, tuple[int, ...], bytes], onnx.TensorProto] = {}
    renamed: dict[str, str] = {}
    for stored in graph.initializer:
        if stored.name not in used:
            continue
        raw = numpy_helper.from_array(numpy_helper.to_array(stored), stored.name)
        key = (raw.data_type, tuple(raw.dims), raw.raw_data)
        renamed[stored.name] = first.setdefault(key, raw).name
    del graph.initializer[:]
    graph.initializer.extend(first.values())
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def _rename(graph: onnx.GraphProto, names: Iterator[str], keep_weights: bool) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    if keep_weights:
        fixed |= {stored.name for stored in graph.initializer}
    new: dict[str, str] = {name: name for name in fixed}

    def short(name: str) -> str:
        if name not in new:
            new[name] = next(candidate for candidate in names if candidate not in fixed)
        return new[name]

    for node in graph.node:
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for stored in graph.initializer:
        stored.name = short(stored.name)
    order = sorted(graph.initializer, key=lambda stored: (len(stored.name), stored.name))
    del graph.initializer[:]
    graph.initializer.extend(order)
