"""A stranger's use of a shipped file: `python -I probe.py MODEL.onnx ROWS.npy ANSWERS.npz`.

Runs in a clean process that knows onnxruntime and NumPy and nothing of this project, as on the
machine where the file will work. Writes the answers to all rows, at once and one by one, and
whether rows that no answer can be trusted for are told apart.
"""

import sys

import numpy as np
import onnxruntime


def main(model: str, rows: str, answers: str) -> None:
    """Load `model`, score the array in `rows`, write what came out to `answers`."""
    images = np.load(rows, allow_pickle=False).astype(np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def ask(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, valid = session.run(["logits", "valid"], {"input": batch})
        return logits, valid

    logits, valid = ask(images)
    single = np.concatenate([ask(images[i : i + 1])[0] for i in range(len(images))])
    _, refused = ask(np.full_like(images[:1], np.nan))
    np.savez(answers, logits=logits, valid=valid, single=single, refused=~refused)


if __name__ == "__main__":
    main(*sys.argv[1:])
