"""The float student as an ONNX graph: the same bytes in any folder, process or user account.

`torch.onnx.export` writes stack traces with paths into the metadata of nodes; all metadata goes,
and what is left depends on the weights and the versions alone.
"""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from torch import nn

from tasks.core.errors import DataError
from tasks.core.tables import Schema
from tasks.quantize.slim import plain_names, strip

OPSET = 20  # the first in which ReduceMin takes booleans
INPUT, LOGITS = "input", "logits"


def export(net: nn.Module, data: Schema) -> onnx.ModelProto:
    """`net` in eval mode: `input` (batch, C, H, W) float32 to `logits` (batch, classes).

    BatchNorm must be folded before (`networks.folded`): what is exported is what is quantized.
    """
    dimensions = ({0: torch.export.Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                net.eval(),
                (torch.zeros(2, *data.shape),),
                dynamo=True,
                optimize=True,
                input_names=[INPUT],
                output_names=[LOGITS],
                dynamic_shapes=dimensions,
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise DataError(
                f"the student cannot be exported to ONNX ({first}); use operators of opset {OPSET}"
            ) from None
    assert program is not None  # noqa: S101 - dynamo=True returns the program
    model: onnx.ModelProto = program.model_proto
    strip(model)
    plain_names(model)
    onnx.checker.check_model(model)
    return model
