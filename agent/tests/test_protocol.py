"""The protocol's words, pinned to the byte, and both sides' reading of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployx.gateway.messages import decode, decode_hello, encode
from deployx_agent import protocol
from deployx_agent.executor import check_order
from deployx_agent.protocol import ProtocolError

GOLDEN = Path(__file__).parent / "golden"
ORDER = json.loads((GOLDEN / "order.json").read_text())


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("agent_*.json")))
def test_the_server_reads_every_message_of_an_agent_and_loses_nothing(name: str) -> None:
    text = (GOLDEN / name).read_text()
    read = decode_hello(text) if name == "agent_hello.json" else decode(text)
    assert json.loads(encode(read)) == json.loads(text)


def test_an_order_is_read_field_by_field() -> None:
    order = protocol.parse_order(json.dumps(ORDER))
    assert (order.order_id, order.run_id, order.device_id) == ("0" * 32, 812, 3)
    assert [(step.index, step.run, step.rollback) for step in order.work.steps] == [(0, "uptime", None)]


def test_what_is_signed_is_fixed() -> None:
    assert protocol.session_signing_input("inst", 3, "bm9uY2U=") == b"deployx-agent-session:1:inst:3:bm9uY2U="
    assert protocol.order_signing_input("{}") == b"deployx-order:1:{}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device_id": 4}, "another device"),
        ({"installation_id": "x"}, "another device or installation"),
        ({"epoch": 0}, "epoch 0 is older than 1"),
        ({"issued_at": "2020-01-01T00:00:00Z"}, "older than this device remembers"),
        ({"expires_at": "2026-11-23T01:00:00Z"}, "expired"),
        ({"kind": "teleport"}, "'teleport'"),
        ({"run_id": "812"}, "order.run_id is '812'"),
    ],
)
def test_an_order_that_is_not_for_here_and_now_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        _check(ORDER | changes)


def test_a_good_order_passes() -> None:
    assert _check(ORDER).run_id == 812


def _check(body: dict[str, Any]) -> protocol.Order:
    return check_order(
        json.dumps(body),
        installation_id="inst",
        device_id=3,
        epoch=1,
        watermark="2026-08-01T00:00:00+00:00",
        server_now=protocol.parse_instant("2026-11-23T02:00:05Z"),
    )


@given(st.text())
def test_no_text_breaks_the_reading_of_a_frame(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(protocol.decode(text)["type"], str)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.dictionaries(st.sampled_from(sorted(ORDER)), inner),
    )
)
def test_no_json_breaks_the_reading_of_an_order(value: Any) -> None:
    with pytest.raises(ProtocolError):
        protocol.parse_order(json.dumps(value))
