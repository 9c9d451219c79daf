import pytest

from tests.conftest import write_jsonl
from utils.data.sources.names import Source, parse_sources
from utils.settings import InputError


def parse(*words, flag="--data_path", **options):
    return parse_sources([str(word) for word in words], flag, **options)


def test_shares_and_caps_stand_behind_a_path():
    assert parse("a:0.3", "b/c:.7", "d.jsonl:2.") == [
        Source("a", "a", weight=0.3),
        Source("b/c", "b/c", weight=0.7),
        Source("d.jsonl", "d.jsonl", weight=2.0),
    ]
    assert parse("a:5000", "b") == [Source("a", "a", cap=5000), Source("b", "b")]
    assert parse("c:/x", "a:b") == [Source("c:/x", "c:/x"), Source("a:b", "a:b")]


def test_a_file_that_is_named_so_is_meant(tmp_path):
    path = write_jsonl(tmp_path / "rows:5.jsonl", [{"a": 1}])
    assert parse(path)[0].path == str(path)
    odd = tmp_path / "odd:7"
    odd.mkdir()
    assert parse(odd)[0] == Source(str(odd), "odd:7")


def test_a_revision_and_a_configuration_stand_behind_a_name():
    assert parse("a/b@v1:0.3", "a/b/c@refs/pr/1#x:.7", "d#x y:1.", "e#x:2.") == [
        Source("a/b", "a/b@v1", weight=0.3, revision="v1"),
        Source("a/b/c", "a/b/c@refs/pr/1#x", weight=0.7, revision="refs/pr/1", subset="x"),
        Source("d", "d#x y", weight=1.0, subset="x y"),
        Source("e", "e#x", weight=2.0, subset="x"),
    ]
    assert parse("a@b#c:50")[0].place == "a@b#c"
    assert parse("a@", "#b", "a@b@c", "a#b#c") == [
        Source(word, word) for word in ("a@", "#b", "a@b@c", "a#b#c")
    ]


def test_a_local_folder_has_configurations_and_no_revision(tmp_path):
    for name in ("clone", "odd@1#2"):
        (tmp_path / name).mkdir()
    odd, clone = tmp_path / "odd@1#2", tmp_path / "clone"
    assert parse(odd, f"{odd}:5") == [Source(str(odd), str(odd)), Source(str(odd), str(odd), cap=5)]
    assert parse(f"{clone}#part:5") == [Source(str(clone), "clone#part", cap=5, subset="part")]
    with pytest.raises(InputError, match="clone@v1: .*clone is on this disk; only .* hub have rev"):
        parse(f"{clone}@v1")


def test_names_are_short_where_they_are_clear(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "train.jsonl.gz", [])
    write_jsonl(tmp_path / "other.jsonl", [])
    paths = [tmp_path / "one/train.jsonl.gz", tmp_path / "two/train.jsonl.gz"]
    names = [source.name for source in parse(*paths, tmp_path / "other.jsonl")]
    assert names == [*map(str, paths), "other"]
    assert parse(paths[0])[0].name == "train"


YAML = """
sources:
  - {path: here.jsonl, weight: 3, cap: 10, name: mine}
  - {path: some/name, weight: 0.5, split: train_prefs, subset: part, format: pairs}
"""


def test_a_yaml_file_lists_sources(tmp_path):
    write_jsonl(tmp_path / "here.jsonl", [])
    (tmp_path / "mix.yaml").write_text(YAML)
    assert parse(tmp_path / "mix.yaml", layout="ranked") == [
        Source(str(tmp_path / "here.jsonl"), "mine", weight=3, cap=10, format="ranked"),
        Source("some/name", "some/name#part", 0.5, None, "train_prefs", "part", "pairs"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sources: [", "no YAML"),
        ("\x00", "no YAML"),
        ("[" * 3000, "no YAML"),
        ("- path: a", "expected `sources:`"),
        ("sources: []", "expected `sources:`"),
        ("sources: [a]", "entry 1 is 'a'; expected one with a path"),
        ("sources: [{path: a}, {weight: 1}]", "entry 2 .* expected one with a path"),
        ("sources: [{path: 5}]", "entry 1 .* expected one with a path"),
        ("sources: [{path: a, wait: 1}]", "entry 1 has wait; known are path, name, weight"),
        ("sources: [{path: a, weight: .nan}]", "weight is nan; expected a number above 0"),
        ("sources: [{path: a, weight: yes}]", "weight is True; expected a number above 0"),
        ("sources: [{path: a, weight: 0}]", "weight is 0; expected a number above 0"),
        ("sources: [{path: a, cap: 1.5}]", "cap is 1.5; expected a whole number"),
        ("sources: [{path: a, split: 5}]", "split is 5; expected text"),
        ("sources: [{path: a, revision: 1.0}]", "revision is 1.0; expected text"),
        ("sources: [{path: 'a#x', subset: y}]", "a#x: its subset stands here and in an entry"),
        ("sources: [{path: a, format: what}]", "format is 'what'; expected one of"),
        ("sources: [{path: a, weight: 1}, {path: b}]", "a has a weight, but b has none"),
    ],
)
def test_what_a_yaml_file_cannot_mean(tmp_path, content, message):
    (tmp_path / "mix.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse(tmp_path / "mix.yaml")


def test_a_yaml_file_spells_a_place_in_either_way(tmp_path):
    (tmp_path / "a@1").mkdir()
    entries = ["a@1", "a@1#x", "{path: a@1, subset: x}", "b/c@v1#x", "{path: b/c, revision: v1}"]
    lines = [f"  - {entry if '{' in entry else {'path': entry}}\n" for entry in entries]
    (tmp_path / "mix.yaml").write_text("sources:\n" + "".join(lines))
    local = str(tmp_path / "a@1")
    found = [(s.path, s.revision, s.subset) for s in parse(tmp_path / "mix.yaml")]
    assert found == [
        (local, None, None),
        (local, None, "x"),
        (local, None, "x"),
        ("b/c", "v1", "x"),
        ("b/c", "v1", None),
    ]


def test_what_words_cannot_mean(tmp_path):
    with pytest.raises(InputError, match=r"none.yml: no such file"):
        parse(tmp_path / "none.yml")
    with pytest.raises(InputError, match="a has a weight, but b has none: give all of them one"):
        parse("a:0.5", "b")
    with pytest.raises(InputError, match="a: weight is 0.0; expected a number above 0"):
        parse("a:0.0")
    with pytest.raises(InputError, match="a: cap is 0; expected a whole number above 0"):
        parse("a:0")
    with pytest.raises(InputError, match="--eval_data_path: a has a weight"):
        parse("a:0.5", flag="--eval_data_path")
    assert parse("a:5", flag="--eval_data_path") == [Source("a", "a", cap=5)]
