"""Score raw images with a shipped student. Needs onnxruntime and NumPy, nothing else:

python consumer.py model.onnx images.npy    # float32 or uint8, (rows, channels, height, width)
"""

import json
import sys

import numpy as np
import onnxruntime


def score(session, images):
    """Logits (rows, classes); a ValueError names the rows that no answer can be trusted for."""
    logits, valid = session.run(["logits", "valid"], {"input": images.astype(np.float32)})
    if not valid.all():
        raise ValueError(f"not finite or out of range: rows {np.flatnonzero(~valid).tolist()}")
    return logits


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map.get("classes", "null"))
    for best in score(session, np.load(sys.argv[2])).argmax(axis=1).tolist():
        print(names[best] if names else best)
