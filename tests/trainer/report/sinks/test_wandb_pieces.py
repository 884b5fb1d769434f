"""The ids of a run folder's W&B runs: its own, and each recording another, unless it goes on online."""

from dataclasses import replace

import pytest

from trainer.report.sinks.wandb_pieces import Piece, Pieces, new_id, read_pieces, write_pieces


def piece(name, mode, ending):
    return Piece(id=name, mode=mode, folder="f", ending=ending)


def test_ids_are_of_the_folder_and_not_of_its_name():
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("pieces", "continued", "fresh"),
    [
        ((), None, "i"),
        ((piece("i", "offline", "kept"),), None, "i-2"),
        ((piece("i", "offline", "kept"), piece("i-2", "offline", "kept")), None, "i-3"),
        ((piece("i", "online", "sent"),), "i", "i-2"),
        ((piece("i", "online", "open"),), "i", "i-2"),  # cut off, perhaps by the machine's end
        ((piece("i", "online", "kept"),), None, "i-2"),  # its last rows are in files that are yet to be uploaded
        ((piece("i", "online", "sent"), piece("i-2", "offline", "kept")), None, "i-3"),
    ],
)
def test_who_may_go_on_under_an_id(pieces, continued, fresh):
    known = Pieces(id="i", pieces=pieces)
    assert known.id_to_continue(again=False) == continued
    assert known.fresh_id() == fresh


@pytest.mark.parametrize(
    ("last", "continued"),
    [
        (piece("i", "online", "kept"), "i"),  # read to its end, but its process died before the server had all
        (piece("i", "online", "open"), "i"),
        (piece("i", "offline", "kept"), None),
        (piece("i", "online", "replaced"), None),
    ],
)
def test_what_records_the_same_rows_again_goes_on_under_their_id(last, continued):
    assert Pieces(id="i", pieces=(last,)).id_to_continue(again=True) == continued


def test_what_was_cut_off_offline_is_to_be_uploaded_too():
    assert piece("i", "offline", "open").is_kept
    assert not piece("i", "online", "open").is_kept
    assert not piece("i", "offline", "replaced").is_kept


def test_the_file_reads_back_and_a_damaged_one_is_none(tmp_path):
    path = tmp_path / "wandb" / "pieces.json"
    assert read_pieces(path) is None
    known = Pieces(id="i", pieces=(piece("i", "online", "open"),), note="why").ended("sent")
    write_pieces(path, known)
    assert read_pieces(path) == known == replace(known, pieces=(piece("i", "online", "sent"),))
    whole = path.read_bytes()
    for damaged in (whole[:40], whole.replace(b'"id"', b'"ix"'), b"\xff" + whole, b"[]"):
        path.write_bytes(damaged)
        assert read_pieces(path) is None
