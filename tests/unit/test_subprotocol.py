"""`fabric.subprotocol`: valid lists, and who gets which name."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.error import InvalidHeader, InvalidSubprotocol, SubprotocolNegotiationFailed
from fabric.subprotocol import SubprotocolList, SubprotocolNegotiator

names = st.lists(st.sampled_from(["a", "b", "c", "d", "v2.chat"]), unique=True)


def test_a_list_is_a_tuple_in_order_of_preference() -> None:
    offered = SubprotocolList(["v2.chat", "v1.chat"])
    assert offered == ("v2.chat", "v1.chat")
    assert str(offered) == "v2.chat, v1.chat"
    assert repr(offered) == "SubprotocolList(['v2.chat', 'v1.chat'])"
    assert pickle.loads(pickle.dumps(offered)) == offered
    assert not SubprotocolList()


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a/b", "é", "a\n", "(a)", 3, None])
def test_a_name_is_a_token(name: object) -> None:
    with pytest.raises(InvalidSubprotocol) as caught:
        SubprotocolList(["fine", name])  # type: ignore[list-item]
    assert caught.value.value == name


def test_a_name_stands_there_once() -> None:
    with pytest.raises(InvalidSubprotocol, match="'a'"):
        SubprotocolList(["a", "b", "a"])
    assert SubprotocolList(["a", "A"]) == ("a", "A")  # names compare case-sensitively


@pytest.mark.parametrize("names", ["chat", b"chat"])
def test_one_str_is_not_a_list(names: object) -> None:
    with pytest.raises(TypeError, match="chat"):
        SubprotocolList(names)  # type: ignore[arg-type]


@given(names)
def test_a_list_is_read_from_one_line_or_many(names: list[str]) -> None:
    offered = SubprotocolList(names)
    assert SubprotocolList.parse([str(offered)]) == SubprotocolList.parse(names) == offered


@pytest.mark.parametrize("lines", [["a, b c"], ["a", "a"]])
def test_an_offer_may_be_invalid(lines: list[str]) -> None:
    with pytest.raises(InvalidSubprotocol):
        SubprotocolList.parse(lines)
    with pytest.raises(InvalidHeader):
        SubprotocolList.parse(['"'])


@given(names, names)
def test_the_client_prefers(offered: list[str], supported: list[str]) -> None:
    selected = SubprotocolNegotiator(supported).select(offered)
    common = [name for name in offered if name in supported]
    assert selected == (common[0] if common else None)


def test_a_star_accepts_what_the_client_likes_best() -> None:
    negotiator = SubprotocolNegotiator(["a", "*"])
    assert negotiator.select(["x", "a"]) == "x"
    assert negotiator.select([]) is None
    assert SubprotocolNegotiator(["a"]).select(["*"]) is None


@pytest.mark.parametrize("offered", [[], ["x", "y"]])
def test_required_means_required(offered: list[str]) -> None:
    negotiator = SubprotocolNegotiator(["a", "b"], required=True)
    with pytest.raises(SubprotocolNegotiationFailed) as caught:
        negotiator.select(iter(offered))
    assert caught.value.offered == tuple(offered)
    assert caught.value.supported == ("a", "b")
    assert negotiator.select(["x", "b"]) == "b"


@pytest.mark.parametrize("supported", [["*"], ["a"]])
def test_what_is_offered_is_checked(supported: list[str]) -> None:
    negotiator = SubprotocolNegotiator(supported)
    for offered in (["a b\r\n"], [""], ["b", 3], ["b", "b"]):
        with pytest.raises(InvalidSubprotocol):
            negotiator.select(offered)  # type: ignore[arg-type]
    for one in ("a", b"a"):
        with pytest.raises(TypeError, match="several"):
            negotiator.select(one)  # type: ignore[arg-type]


def test_a_negotiator_checks_its_names() -> None:
    with pytest.raises(InvalidSubprotocol):
        SubprotocolNegotiator(["a b"])
    assert repr(SubprotocolNegotiator(["a"], required=True)) == "SubprotocolNegotiator(['a'], required=True)"


def test_a_client_confirms_the_choice() -> None:
    offered = SubprotocolList(["a", "b"])
    assert offered.confirm("b") == "b"
    assert offered.confirm(None) is None
    for chosen in ("c", "A", ""):
        with pytest.raises(SubprotocolNegotiationFailed, match="not offered"):
            offered.confirm(chosen)
