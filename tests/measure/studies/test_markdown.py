"""The generated block of a page is replaced and nothing else of it."""

import pytest

from conf.errors import DataError
from measure.studies.markdown import markers, replace_block, some_steps, table, write_page

BEGIN, END = markers("headline")


def test_only_the_block_changes():
    page = f"# Title\nby hand\n{BEGIN}\nold\nlines\n{END}\nmore by hand\n"
    assert replace_block(page, "headline", ["new"]) == f"# Title\nby hand\n{BEGIN}\nnew\n{END}\nmore by hand\n"


def test_writing_twice_is_writing_once(tmp_path):
    path = tmp_path / "docs" / "headline.md"
    path.parent.mkdir()
    path.write_text(f"before\n\n{BEGIN}\n{END}\n\nafter\n")
    write_page(path, "headline", ["a", "b"])
    first = path.read_text()
    write_page(path, "headline", ["a", "b"])
    assert path.read_text() == first == f"before\n\n{BEGIN}\na\nb\n{END}\n\nafter\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_page_that_does_not_exist_is_the_block_alone(tmp_path):
    write_page(tmp_path / "new" / "page.md", "headline", ["a"])
    assert (tmp_path / "new" / "page.md").read_text() == f"{BEGIN}\na\n{END}\n"


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_page_without_its_two_markers_is_refused_and_kept(page, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(DataError, match=r"page\.md.*once each"):
        write_page(path, "headline", ["a"])
    assert path.read_text() == page


def test_markers_of_another_study_do_not_count():
    with pytest.raises(DataError):
        replace_block("\n".join(markers("precision")), "headline", ["a"])


def test_table():
    assert table(["model", "loss"], [["dense", "1.0"]]) == ["| model | loss |", "| --- | ---: |", "| dense | 1.0 |"]
    with pytest.raises(AssertionError, match="ragged"):
        table(["model", "loss"], [["dense"]])


def test_a_curve_is_shown_at_some_ten_steps_with_both_ends():
    assert some_steps([0, 25, 50]) == [0, 25, 50]
    shown = some_steps(list(range(0, 776, 25)))
    assert shown == [0, 100, 200, 300, 400, 500, 600, 700, 775]
    assert some_steps([0]) == [0]
