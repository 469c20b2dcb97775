"""``prompts=`` in all its forms, and what is said when it is none of them."""

import csv
import functools
import http.server
import re
import threading
from collections import Counter
from importlib.resources import files

import pytest
from omegaconf import OmegaConf

from imagen.errors import UserError
from imagen.prompt_files import Prompt
from imagen.prompts import prompt_sets, read_prompts, read_prompts_and_kinds


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
        ("latin.txt", "café".encode("latin-1"), r"holds no prompt \(line 1 has letters that are not UTF-8"),
        ("wide.csv", "x" * 200_000, r"holds no prompt \(line 1 cannot be read as a row"),
        ("page.tsv", "\n<!DOCTYPE html>\n<html>", "is a web page"),
        ("void.jsonl", '{"tag": "a"}\n', r"holds no prompt \(line 1 has no prompt\)"),
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


KINDS = (
    "colours conflicting counting long_descriptions misspellings positions rare_words text_in_the_picture styles "
    "relations negation"
)


def test_lab_has_twenty_prompts_of_each_of_eleven_kinds():
    prompts = read_prompts_and_kinds("lab")
    assert Counter(kind for _, kind in prompts) == {kind.replace("_", " "): 20 for kind in KINDS.split()}
    assert len({" ".join(re.findall(r"\w+", text.lower())) for text, _ in prompts}) == 220


def test_the_kinds_of_lab_are_what_they_say():
    by_kind: dict[str, list[str]] = {}
    for text, kind in read_prompts_and_kinds("lab"):
        by_kind.setdefault(kind, []).append(text)
    assert min(len(text.split()) for text in by_kind["long descriptions"]) >= 30
    assert all(re.search(r"'[^']+'", text) for text in by_kind["text in the picture"])
    number = r"\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|single|pair)\b"
    assert all(re.search(number, text.lower()) for text in by_kind["counting"])
    assert all(re.search(r"\b(no|not|without|nobody|but|unlit)\b", text) for text in by_kind["negation"])


def test_a_shipped_table_is_plain():
    text = (files("imagen") / "prompt_sets" / "lab.csv").read_text(encoding="utf-8")
    assert next(csv.reader([text.split("\n")[0]])) == ["kind", "prompt"]
    assert "\r" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "category,prompt\nAnimals,a cat\n,a dog\n"),
        ("b.jsonl", '{"tag": "Animals", "prompt": "a cat"}\n\n{"prompt": " a dog ", "include": []}\n'),
        ("c.TSV", "Caption\tKind\na cat\tAnimals\na dog\n"),
        ("without_suffix", "kind,prompt\nAnimals,a cat\n,a dog"),
        ("lines", '{"kind": "Animals", "caption": "a cat"}\n{"caption": "a dog"}'),
    ],
)
def test_kinds_travel_with_prompts(write, name, content):
    assert read_prompts_and_kinds(write(name, content)) == [Prompt("a cat", "Animals"), Prompt("a dog")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,id\na cat,1\n,2\na dog,3\n", "1 of 3 lines are left out; line 3 has no prompt"),
        ("b.csv", "id,prompt\n1,a cat\n2,red, green\n3,a dog,\n", "line 3 has more cells than the first line"),
        ("c.csv", 'prompt,id\na cat,1\n"a bird,2\na dog,3\n', "line 3 cannot be read as a row"),
        ("d.jsonl", '{"prompt": "a cat"}\n{"prompt": "a b\n{"prompt": "a dog"}', "line 2 is not JSON"),
        (
            "e.jsonl",
            '{"prompt": "a cat"}\n[1]\n{"prompt": 7}\n{"prompt": "a dog"}',
            "2 of 4 lines.*2 has no prompt",
        ),
        ("f.txt", "a cat\na\x07bird\n\na dog", "line 2 has a control character"),
        ("g.txt", b"a cat\na caf\xe9\na dog\n", "1 of 3 lines are left out; line 2 has letters that are not UTF-8"),
        ("i.csv", b"prompt,kind\na cat,\na bird,caf\xe9\na dog,\n", "1 of 3 lines are left out; line 3 has letters"),
        ("h.jsonl", '{"prompt": "a cat"}\n{"prompt": "\\ud800"}\n{"prompt": "a dog"}', "line 2 has letters"),
    ],
)
def test_bad_lines_are_named_and_the_rest_goes_on(write, caplog, name, content, message):
    assert read_prompts(write(name, content)) == ["a cat", "a dog"]
    assert re.search(rf"{name}.*{message}", caplog.text)
    assert len(caplog.records) == 1


def test_quotes_within_a_tab_separated_cell_are_part_of_it(write):
    path = write("a.tsv", 'Prompt\tCategory\n"G" on a wall\tArt\na dog\tAnimals\n')
    assert read_prompts(path) == ['"G" on a wall', "a dog"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_read_like_a_file(server, write):
    write("a.csv", "kind,prompt\nfood,a pear\n")
    assert read_prompts_and_kinds(f"{server}/a.csv?raw=true") == [Prompt("a pear", "food")]
    with pytest.raises(UserError, match=r"nothing\.csv' cannot be read \(.*\): check that it is there"):
        read_prompts(f"{server}/nothing.csv")


def test_a_url_that_nothing_serves_is_named():
    with pytest.raises(UserError, match=r"'nope://a'.*nothing serves nope://"):
        read_prompts("nope://a")
