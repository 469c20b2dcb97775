"""What cannot be a sample."""

from imagen.prep.unfit import Unfit


def test_a_row_says_why_and_from_where():
    row = Unfit("undecodable", "it is a page").row("000000001", {"path": "a/page.jpg"})
    assert row["key"] == "000000001"
    assert row["path"] == "a/page.jpg"
    assert (row["status"], row["error_message"], row["detail"]) == ("dropped", "undecodable", "it is a page")
