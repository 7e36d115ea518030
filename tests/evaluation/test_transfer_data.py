"""SentEval's transfer tasks in their own layouts, by small copies of them and by the real files."""

import re
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.transfer_data import load_transfer

DOWNSTREAM = ROOT.parent / "shared" / "data" / "senteval" / "downstream"
needs_shared = pytest.mark.skipif(
    not (DOWNSTREAM / "CR").is_dir(),
    reason="the transfer tasks in ../shared/data/senteval are not on this machine",
)
MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
FILES = {
    "MR/rt-polarity.neg": b"so sad\n\xef\n",  # the second line is Latin-1
    "MR/rt-polarity.pos": b"a  na\xefve\x85 film \r\nfun\nwarm\n",
    "CR/custrev.neg": "\ufeffna\u00efve\n\n".encode(),  # a byte-order mark, so UTF-8; a blank line
    "CR/custrev.pos": b"good\n",
    "SUBJ/subj.subjective": b"I think\nmaybe\n",
    "SUBJ/subj.objective": b"he walks",  # no line feed at the end
    "MPQA/mpqa.neg": b"failing\n",
    "MPQA/mpqa.pos": b"to win\n",
    "SST/binary/sentiment-train": "caf\u00e9 \t1\n' bad ' \t0\n".encode(),
    "SST/binary/sentiment-dev": b"dull\t0\n",
    "SST/binary/sentiment-test": b"great\t1\r\n",
    "TREC/train_5500.label": b"NUM:dist How far : 5 km ?\nABBR:exp What is \xf0 ?\n",
    "TREC/TREC_10.label": b"LOC:city Where is Oslo ?\n",
    "MRPC/msr_paraphrase_train.txt": ("\ufeff" + MRPC_HEADER + '1\t7\t8\ta "b\tc d\n').encode(),
    "MRPC/msr_paraphrase_test.txt": (MRPC_HEADER + "0\t7\t8\te\tf\r\n").encode(),
}


def write_transfer(downstream: Path) -> Path:
    """All seven tasks, a few lines each, in SentEval's layouts."""
    for name, content in FILES.items():
        (downstream / name).parent.mkdir(parents=True, exist_ok=True)
        (downstream / name).write_bytes(content)
    return downstream


def test_all_layouts_are_read(tmp_path):
    tasks, missing = load_transfer(write_transfer(tmp_path))
    found = {
        task.name: [
            (split.first, split.second, split.labels.tolist())
            for split in (task.train, task.dev, task.test)
            if split is not None
        ]
        for task in tasks
    }
    assert not missing
    assert found == {
        "MR": [(["so sad", "\xef", "a na\xefve film", "fun", "warm"], None, [0, 0, 1, 1, 1])],
        "CR": [(["na\xefve", "", "good"], None, [0, 0, 1])],
        "SUBJ": [(["I think", "maybe", "he walks"], None, [0, 0, 1])],
        "MPQA": [(["failing", "to win"], None, [0, 1])],
        "SST2": [
            (["caf\xe9", "' bad '"], None, [1, 0]),
            (["dull"], None, [0]),
            (["great"], None, [1]),
        ],
        "TREC": [
            (["How far : 5 km ?", "What is \xf0 ?"], None, [5, 0]),
            (["Where is Oslo ?"], None, [4]),
        ],
        "MRPC": [(['a "b'], ["c d"], [1]), (["e"], ["f"], [0])],
    }
    by_name = {task.name: task for task in tasks}
    assert by_name["SST2"].dev and not by_name["TREC"].dev and not by_name["MR"].test
    assert [len(by_name["SST2"].train), len(by_name["MRPC"].test)] == [2, 1]


def test_a_missing_file_is_named_and_the_other_tasks_are_read(tmp_path):
    folder = write_transfer(tmp_path)
    (folder / "SST/binary/sentiment-dev").unlink()
    (folder / "MR/rt-polarity.pos").unlink()
    (folder / "MR/rt-polarity.neg").unlink()
    tasks, missing = load_transfer(folder)
    assert [task.name for task in tasks] == ["CR", "SUBJ", "MPQA", "TREC", "MRPC"]
    assert set(missing) == {"MR", "SST2"}
    assert "rt-polarity.neg and" in missing["MR"] and "rt-polarity.pos are" in missing["MR"]
    assert missing["SST2"] == f"{folder / 'SST/binary/sentiment-dev'} is missing"
    with pytest.raises(UserError, match="nowhere: no transfer task in SentEval's layout"):
        load_transfer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("SST/binary/sentiment-dev", b"a\t1\nb 0\n", ":2: 1 tab-separated columns instead of 2"),
        ("SST/binary/sentiment-dev", b"a\tb\t1\n", ":1: 3 tab-separated columns instead of 2"),
        ("SST/binary/sentiment-dev", b"a\t1\n\nb\t0\n", ":2: 1 tab-separated columns"),
        ("SST/binary/sentiment-dev", b"a\t1\nb\t2\n", ":2: the label '2' is not 0 or 1"),
        ("SST/binary/sentiment-dev", b"a\t1\n \t0\n", ":2: a sentence is empty"),
        ("SST/binary/sentiment-dev", b"a\t1\n\xff\t0\n", ":2: not UTF-8"),
        ("SST/binary/sentiment-dev", b"\n", ": has no sentences"),
        ("TREC/TREC_10.label", b"NUM:dist How far ?\nWhere ?\n", ":2: .* type and a colon"),
        ("TREC/TREC_10.label", b"WHEN:x Now ?\n", ":1: .* type and a colon"),
        ("TREC/TREC_10.label", b"NUM:dist\n", ":1: a sentence is empty"),
        ("MRPC/msr_paraphrase_test.txt", b"0\t7\t8\ta\tb\n", ":1: the header is not Quality"),
        (
            "MRPC/msr_paraphrase_test.txt",
            (MRPC_HEADER + "0\t7\t8\ta\tb\n1\t7\t8\ta\n").encode(),
            ":3: 4 tab-separated columns instead of 5",
        ),
        (
            "MRPC/msr_paraphrase_test.txt",
            (MRPC_HEADER + "yes\t7\t8\ta\tb\n").encode(),
            ":2: the label 'yes' is not 0 or 1",
        ),
        ("MRPC/msr_paraphrase_test.txt", MRPC_HEADER.encode(), ": has no sentence pairs"),
        ("CR/custrev.neg", b"", ": has no sentences"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, file, content, message):
    folder = write_transfer(tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(folder / file)) + message):
        load_transfer(folder)


@needs_shared
def test_the_real_tasks_have_their_published_sizes():
    tasks, _ = load_transfer(DOWNSTREAM)
    sizes = {task.name: [len(split) for split in task.splits] for task in tasks}
    published = {
        "MR": [10662],
        "CR": [3775],
        "SUBJ": [10000],
        "MPQA": [10606],
        "SST2": [67349, 872, 1821],
        "TREC": [5452, 500],
        "MRPC": [4076, 1725],
    }
    assert sizes == {name: published[name] for name in sizes} and "CR" in sizes
    by_name = {task.name: task for task in tasks}
    assert np.bincount(by_name["CR"].train.labels).tolist() == [1368, 2407]
    assert np.bincount(by_name["TREC"].train.labels).tolist() == [86, 1162, 1250, 1223, 835, 896]
    assert np.mean(by_name["MRPC"].test.labels) == pytest.approx(0.665, abs=5e-4)
