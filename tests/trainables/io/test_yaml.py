import pytest

from trainables.io.yaml import YamlError, load_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.5e-4", 2.5e-4),
        ("-1E+3", -1000.0),
        ("1.5e5", 150000.0),
        (".5e3", 500.0),
        ("3", 3),
        ("0.1", 0.1),
        ("true", True),
        ("False", False),
        ("null", None),
        ("off", "off"),
        ("no", "no"),
        ("yes", "yes"),
        ("On", "On"),
        ("y", "y"),
        ("1e-4x", "1e-4x"),
        ("e4", "e4"),
        ("10%", "10%"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_words_and_numbers_are_read_as_people_mean_them(text, value):
    [read] = parse_yaml(f"[{text}]", "f")
    assert read == value
    assert type(read) is type(value)


def test_a_key_that_stands_twice_is_refused_with_its_line():
    with pytest.raises(YamlError, match=r"^f\.yaml:4:3: the key 'lr' stands here twice, first in line 2$"):
        parse_yaml("optim:\n  lr: 1\n  wd: 2\n  lr: 3\n", "f.yaml")


def test_the_same_key_in_two_places_is_fine():
    assert parse_yaml("a: {x: 1}\nb: {x: 2}", "f") == {"a": {"x": 1}, "b": {"x": 2}}


def test_a_mapping_can_take_over_the_keys_of_another():
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"
    assert parse_yaml(text, "f")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\n\tb: 2\n", 2), ("a: [1, 2\nb: 3\n", 2), ("a: 1\nb: *nowhere\n", 2), ("a: 1\n? [x]\n: 2\n", 2)],
)
def test_what_is_no_yaml_is_refused_with_its_line(text, line):
    with pytest.raises(YamlError, match=rf"^f\.yaml:{line}:[0-9]+: "):
        parse_yaml(text, "f.yaml")


def test_tags_that_would_run_code_are_refused_and_run_nothing(tmp_path):
    mark = tmp_path / "ran"
    text = f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]"
    with pytest.raises(
        YamlError, match=r"f:1:4: the tag '!!python/object/apply:pathlib.Path.touch' is refused"
    ):
        parse_yaml(text, "f")
    assert not mark.exists()


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(YamlError, match=r"none\.yaml: No such file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("größe: 1".encode("latin-1"))
    with pytest.raises(YamlError, match=r"latin\.yaml:1: is not UTF-8"):
        load_yaml(tmp_path / "latin.yaml")
    (tmp_path / "zero.yaml").write_bytes(b"a: \x00")
    with pytest.raises(YamlError, match=r"zero\.yaml"):
        load_yaml(tmp_path / "zero.yaml")


def test_nesting_without_end_is_refused_and_does_not_crash():
    with pytest.raises(YamlError):
        parse_yaml("[" * 5000, "f")


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2\n", "a: 1\n...\nb\n"])
def test_what_follows_a_document_is_refused_in_words(text):
    with pytest.raises(
        YamlError, match=r"a second document begins here|text follows the end of the document"
    ):
        parse_yaml(text, "f")
