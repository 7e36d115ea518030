"""Makes `bert.npz`, small encoders and their outputs by transformers, for test_bert.py.

Run where torch and transformers are installed: `python tests/golden/make_bert.py`. The seeds are
fixed; the arrays change only if transformers computes differently.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "layer_norm_eps": 1e-3,  # large, so that another epsilon shows
}


def main() -> None:
    arrays = {}
    for family, config, model_class in (
        ("bert", BertConfig(**SIZES, pad_token_id=0), BertModel),
        ("roberta", RobertaConfig(**SIZES, pad_token_id=1), RobertaModel),
    ):
        torch.manual_seed(0)
        model = model_class(config).eval()
        for parameter in model.parameters():
            # Larger than fresh weights, biases and norms included, so that each one matters.
            torch.nn.init.normal_(parameter, std=0.3)
        tokens = torch.randint(5, SIZES["vocab_size"], (3, 12))
        mask = torch.arange(12) < torch.tensor([12, 7, 3])[:, None]
        tokens[~mask] = config.pad_token_id
        with torch.no_grad():
            outputs = model(input_ids=tokens, attention_mask=mask.long())
        arrays |= {
            f"{family}/tensors/{name}": value.numpy()
            for name, value in model.state_dict().items()
            if not name.endswith("_ids")
        }
        arrays[f"{family}/tokens"] = tokens.numpy().astype(np.int32)
        arrays[f"{family}/mask"] = mask.numpy()
        arrays[f"{family}/hidden"] = outputs.last_hidden_state.numpy()
        arrays[f"{family}/pooled"] = outputs.pooler_output.numpy()
    np.savez_compressed(Path(__file__).with_name("bert.npz"), **arrays)


if __name__ == "__main__":
    main()
