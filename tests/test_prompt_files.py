"""A file's form is told by its suffix or its first line. Whole files are in test_prompts.py."""

import pytest

from imagen.prompt_files import NoColumn, Prompt, Row, parse


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "# two\na cat\n\na dog\n"),
        ("", "a cat\na dog\n"),
        (".csv", "prompt\na cat\na dog\n"),
        ("", '"Prompt","id"\na cat,1\na dog,2\n'),
        (".tsv", "a cat\na dog"),
        (".jsonl", '{"prompt": "a cat"}\n{"caption": "a dog"}\n'),
        ("", '\n{"prompt": "a cat"}\n{"Prompt": "a dog"}'),
    ],
)
def test_every_form_gives_the_same_prompts(suffix, text, ending):
    rows = parse(text.replace("\n", ending), suffix)
    assert [row.prompt for row in rows] == [Prompt("a cat"), Prompt("a dog")]


def test_a_row_says_on_which_line_it_ends():
    assert parse('prompt,kind\n"two\nlines",a\n,b\n', ".csv") == [
        Row(3, Prompt("two\nlines", "a")),
        Row(4, None, "has no prompt"),
    ]


def test_a_text_file_has_no_header():
    assert [row.prompt for row in parse("prompt,caption\n", ".txt")] == [Prompt("prompt,caption")]


def test_a_table_without_prompts_names_its_columns():
    with pytest.raises(NoColumn, match="id, title"):
        parse("id,title\n1,x\n", ".csv")
