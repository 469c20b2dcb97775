"""``prompts=`` in all its forms, and what is said when it is none of them."""

import pytest
from omegaconf import OmegaConf

from imagen.errors import UserError
from imagen.prompts import prompt_sets, read_prompts


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_list_is_taken_as_it_is():
    assert read_prompts(["a dog", "", "# not a comment"]) == ["a dog", "", "# not a comment"]
    assert read_prompts(OmegaConf.create(["a dog", 7])) == ["a dog", "7"]


def test_a_mapping_is_no_list():
    with pytest.raises(UserError, match="is not a list"):
        read_prompts(OmegaConf.create({"a": "b"}))


def test_every_set_has_prompts_each_once():
    assert "demo" in prompt_sets()
    for name in prompt_sets():
        found = read_prompts(name)
        assert len(found) == len(set(found)) >= 8


def test_a_text_file_has_one_prompt_a_line(write):
    path = write("mine.txt", "\ufeff# mine\r\n red apple \r\n\r\nsmiling cat, with a hat\r\n#done")
    assert read_prompts(path) == ["red apple", "smiling cat, with a hat"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,Prompt\n1,"red apple, green leaf"\n2,\n3,"two\nlines"\n'),
        ("b.csv", '\ufeffCaption,id\n"red apple, green leaf",1\n"two\nlines",2'),
        ("c.csv", 'caption,prompt\nnot this,"red apple, green leaf"\nnor this,"two\nlines"\n'),
        ("d.csv", '"red apple, green leaf"\n"two\nlines"\n'),
        ("e.TSV", 'Prompt\tCategory\nred apple, green leaf\tFood\n"two\nlines"\tArt\n'),
    ],
)
def test_a_table_has_prompts_in_the_column_of_that_name_or_its_only_one(write, name, content):
    assert read_prompts(write(name, content)) == ["red apple, green leaf", "two\nlines"]


def test_a_set_comes_before_a_file_of_its_name(write, monkeypatch, tmp_path):
    write("demo", "from the file")
    monkeypatch.chdir(tmp_path)
    assert read_prompts("demo") != read_prompts("./demo") == ["from the file"]


def test_neither_set_nor_file_names_the_sets_and_shows_a_list():
    with pytest.raises(UserError, match=r"'a red apple' is neither a set \(.*demo.*\) nor a file.*\[\"a red apple\"\]"):
        read_prompts("a red apple")


@pytest.mark.parametrize("prompts", ["a" * 5000, "~nobody/here", "a\0b", ""])
def test_any_text_is_refused_in_one_sentence(prompts):
    with pytest.raises(UserError, match="neither a set"):
        read_prompts(prompts)


@pytest.mark.parametrize("prompts", [[True], [None], [["nested"]]])
def test_what_is_not_text_is_named(prompts):
    with pytest.raises(UserError, match="is not text"):
        read_prompts(prompts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "# nothing\n\n", "holds no prompt"),
        ("empty.csv", "", "holds no prompt"),
        ("header.csv", "prompt,id\n", "holds no prompt"),
        ("columns.csv", "id,title\n1,red apple\n", "no column 'prompt' or 'caption' among id, title"),
        ("latin.txt", "café".encode("latin-1"), r"is not UTF-8 \(byte 3\)"),
        ("wide.csv", "x" * 200_000, "cannot be read as a table"),
    ],
)
def test_an_unfit_file_is_named(write, name, content, message):
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        read_prompts(write(name, content))


def test_an_empty_list_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"prompts=\[\] holds no prompt"):
        read_prompts([])
    with pytest.raises(UserError, match="neither a set"):
        read_prompts(str(tmp_path))
