"""Makes bert_minilm.json: what transformers' BertModel answers for the real MiniLM checkpoint.

Run it where torch and transformers are installed: python tests/golden/make_bert.py MODEL_DIRECTORY
Only the first values of each row and the row's norm are kept, so that the file stays small.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # this script alone needs it
from transformers import BertModel  # type: ignore[import-not-found]

KEPT = 24
INPUT_IDS = [
    [101, 1037, 4937, 7719, 2006, 1996, 13523, 102, 0, 0, 0, 0],
    [101, 2023, 2003, 1037, 3231, 1997, 1996, 4942, 2594, 2483, 1012, 102],
    [101, 2054, 2003, 1996, 3007, 1997, 2605, 1029, 102, 3000, 102, 0],
]
TOKEN_TYPE_IDS = [[0] * 12, [0] * 12, [0] * 9 + [1, 1, 0]]
ATTENTION_MASK = [[int(token != 0) for token in row] for row in INPUT_IDS]


def main(directory: str) -> None:
    """Run the reference model in float32 and write its answers."""
    model = BertModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK, "token_type_ids": TOKEN_TYPE_IDS}
    with torch.no_grad():
        answers = model(**{name: torch.tensor(rows) for name, rows in inputs.items()})
    golden: dict[str, Any] = {"inputs": inputs, "outputs": {}}
    for name in ("last_hidden_state", "pooler_output"):
        values = answers[name]
        golden["outputs"][name] = {
            "shape": list(values.shape),
            "head": [[round(x, 7) for x in row] for row in values[..., :KEPT].reshape(-1, KEPT).tolist()],
            "norm": [round(x, 6) for x in values.norm(dim=-1).flatten().tolist()],
        }
    Path(__file__).with_name("bert_minilm.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
