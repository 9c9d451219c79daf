"""Data sets of a hub on the loopback address, read by the real clients in other processes."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, make_pairs, write_jsonl
from tests.hub_server import Hub, write_rm_static

PAIRS = make_pairs(12)
NAMES = ("helpful", "harmless")  # configurations of some/parts

# Prints of each place the rows, files and fingerprint of its splits, or what is wrong with it.
READ = """
import json, sys, time
from huggingface_hub.utils import disable_progress_bars
from utils.settings import InputError
from utils.data.sources.files import open_splits, parse_row
from utils.data.sources.names import parse_place

disable_progress_bars()
time.sleep = lambda seconds: None  # between tries
for place in map(parse_place, sys.argv[1:]):
    try:
        splits = open_splits(place.path, place.subset, place.revision)
        found = {name: [parse_row(row) for row in rows] for name, rows in splits.items()}
        keys = [rows.fingerprint() for rows in splits.values()]
        print(json.dumps({"rows": found, "keys": keys}))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Data sets in the layouts of those that people name."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    write_rm_static(hub, PAIRS[:8], PAIRS[8:])

    helpful = hub.folder("datasets", "Anthropic/hh-rlhf")
    for number, part in enumerate(("harmless-base", "helpful-base", "red-team-attempts")):
        zip_rows(helpful / part / "train.jsonl.gz", PAIRS[number : number + 2])
        zip_rows(helpful / part / "test.jsonl.gz", PAIRS[number + 5 : number + 6])
    (helpful / "README.md").write_text("---\nlicense: mit\n---\n")

    steer = hub.folder("datasets", "nvidia/HelpSteer2")
    for name in ("train", "validation", "disagreements/disagreements"):
        zip_rows(steer / f"{name}.jsonl.gz", [{"prompt": "Q", "response": "a", "helpfulness": 3}])
    zip_rows(steer / "preference" / "preference.jsonl.gz", PAIRS[:3])

    for number, revision in enumerate(("v1", "main")):
        parts = hub.folder("datasets", "some/parts", revision)
        for name in ("helpful", "harmless [old]"):
            (parts / name).mkdir()
            write_jsonl(parts / name / "train.jsonl", PAIRS[number : number + len(name)])
        card = "\n".join(f"- {{config_name: {n}, data_files: {n}*/*.jsonl}}" for n in NAMES)
        (parts / "README.md").write_text(f"---\nconfigs:\n{card}\n---\n")
    for fault in ("gated", "down", "cut"):
        zip_rows(hub.folder("datasets", f"some/{fault}") / "train.jsonl.gz", PAIRS)
        hub.faults[f"some/{fault}"] = fault
    zip_rows(hub.folder("datasets", "some/private") / "train.jsonl.gz", PAIRS)
    hub.private["some/private"] = "hf_secret"
    return hub


def zip_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(hub, home, *words, offline=False, **more):
    """What READ prints of each word; `requests` of the hub begin anew."""
    hub.requests.clear()
    environment = {**os.environ, **hub.environment(home, offline), "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", READ, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(words), done.stdout + done.stderr
    return found


def test_a_part_of_a_data_set_is_fetched_once_and_found_without_network(hub, tmp_path):
    expected = {
        "Dahoas/rm-static": {"train": PAIRS[:8], "test": PAIRS[8:]},
        "Anthropic/hh-rlhf/helpful-base": {"train": PAIRS[1:3], "test": PAIRS[6:7]},
        "nvidia/HelpSteer2/preference": {"train": PAIRS[:3]},
        "some/parts#helpful": {"train": PAIRS[1:8]},
        "some/parts@v1#helpful": {"train": PAIRS[:7]},
        f"some/parts@{hub.find('datasets', 'some/parts', 'v1')[1]}#harmless": {"train": PAIRS},
        "some/parts/helpful@v1": {"train": PAIRS[:7]},
    }
    found = read(hub, tmp_path / "home", *expected)
    assert [place["rows"] for place in found] == list(expected.values())
    # What a place is called does not matter to the key, nor does the revision: the content does.
    keys = [place["keys"] for place in found]
    assert keys[4] == keys[6] != keys[3] and len({key for key, *_ in keys}) == 6
    fetched = hub.downloads()
    assert set(fetched.values()) == {1}
    assert sorted(path.split("/")[-2] for path in fetched) == [
        *("data", "data", "helpful-base", "helpful-base", "preference")
    ]
    assert max(n for (method, path), n in hub.requests.items() if "/resolve/" in path) == 1

    again = read(hub, tmp_path / "home", *expected)
    assert again == found and not any("/resolve/" in path for _, path in hub.requests)
    missing = ["Anthropic/hh-rlhf/harmless-base", "Anthropic/hh-rlhf", "some/parts#harmless"]
    *same, base, whole, part = read(hub, tmp_path / "home", *expected, *missing, offline=True)
    assert same == found and not hub.requests
    for place in (base, whole, part):  # a part of it is not taken for the whole
        assert "HF_HUB_OFFLINE is set, and HF_HOME does not hold all of it" in place["error"]


FAULTS = {
    "no/such": "the data set no/such: there is none of this name, or it is private and needs HF",
    "a/b/c": "neither a local path nor, on the hub, the folder c of the data set a/b: there is",
    "data/pairs": "neither a local path nor, on the hub, the data set data/pairs: there is none",
    "Dahoas/rm-static@v9": "rm-static@v9: .*it has no such revision",
    "Anthropic/hh-rlhf/harmles": "it has the folders harmless-base, helpful-base, red-team-att",
    "some/parts": "the configurations helpful, harmless: name one .* some/parts#helpful or with",
    "some/parts@v1#help": "configurations helpful, harmless: .* as some/parts@v1#helpful or with",
    "Dahoas/rm-static#x": "Dahoas/rm-static#x: has no configurations: leave #x out",
    "some/gated": "some/gated: access is restricted: ask for it on its page, and give HF_TOKEN",
    "some/down": "some/down: .*Server error '500 Internal Server Error'",
    "some/cut": "some/cut: peer closed connection without sending complete message body",
    "some/private": "there is none of this name, or it is private and needs HF_TOKEN",
}


def test_what_the_hub_does_not_give_is_said_in_a_line(hub, tmp_path):
    found = read(hub, tmp_path, *FAULTS)
    for (word, message), place in zip(FAULTS.items(), found, strict=True):
        assert place["error"].startswith(f"{word}: ") and "\n" not in place["error"]
        assert re.search(message, place["error"]), place["error"]
    (nowhere,) = read(hub, tmp_path, "no/such", HF_ENDPOINT="http://127.0.0.1:9")
    assert "Without network, give a local file or folder" in nowhere["error"]


def test_a_private_data_set_gets_the_token_and_no_other_host_does(hub, tmp_path):
    hub.tokens.clear()
    (place,) = read(hub, tmp_path, "some/private", HF_TOKEN="hf_secret")
    assert place["rows"] == {"train": PAIRS} and hub.tokens == {None}
