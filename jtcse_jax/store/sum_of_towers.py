"""The sum of several towers, encoders of one family, as a module of sentence-transformers.

An exported folder with two or more towers contains a copy of this file and names it in its
`modules.json`. So this file imports nothing of the package that wrote it.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import snapshot_download
from sentence_transformers.models import Pooling  # pyright: ignore[reportMissingImports]
from transformers import AutoModel, AutoTokenizer

DESCRIPTION = "jtcse.json"
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


class SumOfTowers(torch.nn.Module):
    """Maps sentences to the sum of the towers' sentence vectors, not normalised."""

    save_in_root = True  # tells sentence-transformers to save beside modules.json

    def __init__(
        self,
        towers: Sequence[torch.nn.Module],
        tokenizer: Any,
        *,
        pooling: str,
        max_seq_length: int,
    ):
        """Takes transformers models of the same width that share a tokenizer.

        Args:
          towers: the models.
          tokenizer: their transformers tokenizer.
          pooling: a mode of sentence-transformers' `Pooling`, such as "cls" or "mean".
          max_seq_length: longest sentence in tokens; longer ones are cut.
        """
        super().__init__()
        self.towers: Any = torch.nn.ModuleList(towers)  # which forgets the type of its modules
        self.tokenizer = tokenizer
        self.pooling = pooling
        self._pool = Pooling(self.get_embedding_dimension(), pooling_mode=pooling)
        self.max_seq_length = max_seq_length

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> "SumOfTowers":
        """Loads the module from an exported folder, or from a hub repository that holds one.

        The arguments are those that sentence-transformers passes; `model_kwargs` go to
        `AutoModel.from_pretrained` for every tower.
        """
        folder = model_name_or_path
        if not os.path.isdir(folder):
            folder = snapshot_download(
                model_name_or_path,
                revision=revision,
                token=token,
                cache_dir=cache_folder,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        folder = os.path.join(folder, subfolder)
        with open(os.path.join(folder, DESCRIPTION), encoding="utf-8") as file:
            description = json.load(file)
        paths = [os.path.join(folder, name) for name in description["towers"]]
        return cls(
            [AutoModel.from_pretrained(path, **(model_kwargs or {})) for path in paths],
            AutoTokenizer.from_pretrained(paths[0]),
            pooling=description["pooling"],
            max_seq_length=description["serving_length"],
        )

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Writes the files that `load` reads."""
        names = [f"tower_{number}" for number in range(len(self.towers))]
        for name, tower in zip(names, self.towers, strict=True):
            path = os.path.join(output_path, name)
            tower.save_pretrained(path)
            self.tokenizer.save_pretrained(path)
        description = {
            "towers": names,
            "pooling": self.pooling,
            "serving_length": self.max_seq_length,
        }
        with open(os.path.join(output_path, DESCRIPTION), "w", encoding="utf-8") as file:
            json.dump(description, file, indent=2)
            file.write("\n")

    def preprocess(
        self, inputs: Sequence[str], prompt: str | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        """Token ids and masks [n, L] of sentences with the prompt before them, padded."""
        encoded = self.tokenizer(
            [(prompt or "") + text for text in inputs],
            padding=True,
            truncation=True,
            max_length=self.max_seq_length,
            return_tensors="pt",
        )
        return dict(encoded)

    def tokenize(self, texts: Sequence[str], **_: Any) -> dict[str, torch.Tensor]:
        """The older name of `preprocess`."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds "sentence_embedding" [n, D] to `features`, in the towers' dtype."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: features[name] for name in names if name in features}
        total = 0
        for tower in self.towers:
            states = {
                "token_embeddings": tower(**inputs).last_hidden_state,
                "attention_mask": inputs["attention_mask"],
            }
            total = total + self._pool(states)["sentence_embedding"]
        features["sentence_embedding"] = total
        return features

    def get_embedding_dimension(self) -> int:
        """D, the width of the sum."""
        return self.towers[0].config.hidden_size

    def get_sentence_embedding_dimension(self) -> int:
        """The older name of `get_embedding_dimension`."""
        return self.get_embedding_dimension()
