"""Hugging Face folders found: local ones, the hub's, those in installed packages."""

import huggingface_hub
import pytest

from jtcse_jax.errors import UserError
from jtcse_jax.store import hf_files


def test_find_folder(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "cache")

    assert hf_files.find_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert hf_files.find_folder(f"~/{tmp_path.name}") == tmp_path
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hf_files.find_folder("owner/name") == tmp_path / "cache"
    assert asked == [("owner/name", ["*.json", "*.txt", "*.model", "*.safetensors"])]


@pytest.mark.parametrize("name", ["/no/such/folder", "~/none", "./none", "a/b/c"])
def test_a_path_without_a_folder_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(UserError, match=f"{name} does not exist"):
        hf_files.find_folder(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "train.csv").write_text("text\n")
    with pytest.raises(UserError, match="train.csv is a file"):
        hf_files.find_folder(str(tmp_path / "train.csv"))


@pytest.mark.parametrize("name", ["nobody/has-this-model", "two words"])
def test_find_folder_offline(name):
    with pytest.raises(UserError, match=f"{name} is neither a folder nor a reachable") as error:
        hf_files.find_folder(name)
    assert "\n" not in str(error.value)


def test_a_hub_error_of_many_lines_becomes_one(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise OSError("401 Client Error.\n\nCannot access gated repo.\nPlease log in.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"OSError: 401 Client Error\.\)") as error:
        hf_files.find_folder("owner/name")
    assert "\n" not in str(error.value)


def test_find_folder_in_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "some_weights" / "model").mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").write_text("raise ImportError")  # not imported
    (tmp_path / "some_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = hf_files.find_folder("package:some_weights/model")
    assert found == tmp_path / "some_weights" / "model"
    with pytest.raises(UserError, match="the package has no folder 'other'"):
        hf_files.find_folder("package:some_weights/other")
    for name in ("not_there", "some_module", "../some_weights"):
        with pytest.raises(UserError, match="no Python package .* is installed"):
            hf_files.find_folder(f"package:{name}/model")
