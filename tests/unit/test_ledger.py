"""The loss ledger."""

from labkit.ledger import Ledger


def test_it_balances_only_exactly() -> None:
    assert Ledger("c", "live", 10, 7, {"full": 3}).balanced
    assert not Ledger("c", "live", 10, 7, {"full": 2}).balanced
    assert "DOES NOT BALANCE by +1" in Ledger("c", "live", 10, 7, {"full": 2}).describe()


def test_unseen_events_count_as_lost_share_but_stand_apart() -> None:
    book = Ledger("c", "live", 90, 90, {}, unseen=10)
    assert book.lost == 0
    assert book.lost_share == 0.1


def test_it_survives_json_and_changes_its_mode_in_replay() -> None:
    book = Ledger(
        "c", "live", 10, 7, {"full": 3}, unseen=1, event="call", notes=("2 of them odd",), counted={"late": 4}
    )
    assert book.describe().endswith("; 2 of them odd; 4 late")
    assert Ledger.from_dict(book.as_dict()) == book
    assert Ledger.from_dict(book.as_dict(), mode="replay").mode == "replay"


def test_the_frame_lists_every_entry() -> None:
    frame = Ledger("c", "live", 10, 7, {"full": 3}, unseen=1).frame()
    assert frame.set_index("entry")["count"].to_dict() == {"seen": 10, "delivered": 7, "full": 3, "unseen": 1}


def test_hostile_capture_names_are_escaped() -> None:
    assert "<script>" not in Ledger("<script>", "live", 1, 1)._repr_html_()


def test_a_part_counted_independently_has_a_ledger_of_its_own() -> None:
    whole = Ledger("c", "replay", 90, 80, {"full": 10}, unseen=10, event="switch-in")
    part = whole.narrowed("a task", expected=7, delivered=6)
    assert (part.mode, part.event, part.balanced, part.losses) == ("replay", "switch-in", True, {"missed": 1})
    assert "on the whole machine" in part.describe()


def test_a_part_may_count_something_else_and_says_so() -> None:
    whole = Ledger("c", "live", 90, 90, event="switch-in")
    part = whole.narrowed("the service", expected=1000, delivered=998, event="waited microsecond")
    assert part.describe().startswith("waited microseconds: seen 1,000, delivered 998")
