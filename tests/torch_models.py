"""The same towers in torch, where torch is installed."""

import pytest

from jtcse_jax.architecture import Architecture

NO_TORCH = "compares with torch (requirements-dev.txt)"


def torch_model(folder, family, seed, **sizes):
    """A random torch model saved in `folder`, every parameter far from its initial value."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    name = {"bert": "Bert", "roberta": "Roberta"}[family]
    config = getattr(transformers, f"{name}Config")(
        pad_token_id={"bert": 0, "roberta": 1}[family], **sizes
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


SMALL = Architecture(
    vocab_size=30,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_positions=24,
)
