"""The protocol's words, pinned to the byte, and both sides' reading of them."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployx.gateway.messages import decode, decode_hello, encode
from deployx_agent import protocol, reports
from deployx_agent.admission import check_order
from deployx_agent.journal import Entry
from deployx_agent.protocol import ProtocolError
from deployx_agent.work import CommandWork

GOLDEN = Path(__file__).parent / "golden"
AT = datetime(2026, 11, 23, 2, tzinfo=UTC)
SERVER_SAYS: dict[str, protocol.ServerMessage] = {
    "challenge": protocol.Challenge(1, "bm9uY2U=", "inst", AT),
    "welcome": protocol.Welcome("s", AT, 30),
    "refused": protocol.Refused("revoked", "Device 3 was removed: enrol it again."),
    "order": protocol.SignedOrder("{}", "c2ln"),
    "cancel": protocol.Cancel("0" * 32, 812),
    "output_ack": protocol.OutputAck("0" * 32, 7),
    "finished_ack": protocol.FinishedAck("0" * 32),
    "heartbeat_ack": protocol.HeartbeatAck(AT),
}
ORDER = json.loads((GOLDEN / "order.json").read_text())


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("agent_*.json")))
def test_the_server_reads_every_message_of_an_agent_and_loses_nothing(name: str) -> None:
    text = (GOLDEN / name).read_text()
    read = decode_hello(text) if name == "agent_hello.json" else decode(text)
    assert json.loads(encode(read)) == json.loads(text)


def test_an_order_is_read_field_by_field() -> None:
    order = protocol.parse_order(json.dumps(ORDER))
    assert (order.order_id, order.run_id, order.device_id) == ("0" * 32, 812, 3)
    assert isinstance(order.work, CommandWork)
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


@pytest.mark.parametrize(("name", "message"), SERVER_SAYS.items())
def test_an_agent_reads_every_message_of_a_server_and_loses_nothing(
    name: str, message: protocol.ServerMessage
) -> None:  # fmt: skip
    text = (GOLDEN / f"server_{name}.json").read_text()
    assert protocol.parse_server_message(text) == message
    assert {"type": name, **_as_json(message)} == json.loads(text)


def test_every_message_of_a_server_has_its_golden_file() -> None:
    assert {path.stem for path in GOLDEN.glob("server_*.json")} == {f"server_{name}" for name in SERVER_SAYS}


def test_every_message_that_an_agent_builds_is_as_its_golden_file_says() -> None:
    order_id, result = "0" * 32, _golden("agent_finished")
    own = {name: result[name] for name in result if name not in ("type", "order_id", "run_id", "known")}
    entry = Entry(order_id, 812, "ended", None, own, acknowledged=False)
    assert reports.finished(entry) == result
    assert reports.progress("accepted", order_id, 812) == _golden("agent_accepted")
    assert reports.progress("started", order_id, 812) == _golden("agent_started")
    assert reports.rejected(order_id, 812, "The order has expired on the way.") == _golden("agent_rejected")
    unfinished = Entry(order_id, 812, "starting", None, None, acknowledged=False)
    assert reports.unfinished([unfinished]) == _golden("agent_hello")["unfinished"]


def test_a_hello_fits_into_its_frame_however_much_is_unfinished() -> None:
    many = [Entry(f"{n:032}", 2**62, "ended", None, {}, acknowledged=False) for n in range(5000)]
    many.append(Entry("f" * 32, 1, "starting", None, None, acknowledged=False))
    told = reports.unfinished(many)
    assert len(json.dumps(told)) < 200 * 1024
    assert told[0]["order_id"] == "f" * 32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope", "a frame is not JSON"),
        ("[]", "a frame is [], not a JSON object"),
        ('{"type": 1}', "no object with a type"),
        ('{"type": "teleport"}', "unknown type 'teleport'"),
        ('{"type": "cancel", "order_id": 1, "run_id": 2}', "cancel.order_id is 1, not str"),
        ('{"type": "cancel", "order_id": "a", "run_id": true}', "cancel.run_id is True, not int"),
        ('{"type": "cancel", "order_id": "a", "run_id": 9223372036854775808}', "not between 0 and"),
        ('{"type": "output_ack", "order_id": "a"}', "output_ack.through is None"),
        ('{"type": "heartbeat_ack", "server_time": "noon"}', "'noon' is no instant"),
        ('{"type": "heartbeat_ack", "server_time": "2026-11-23T00:00:00"}', "has no offset"),
        ('{"type": "welcome", "session": "s", "server_time": "2026-11-23T00:00:00Z", "heartbeat_seconds": 0}',
         "heartbeat_seconds is 0, not between 1 and"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named_with_its_field_and_value(text: str, words: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(words)):
        protocol.parse_server_message(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "hopeful"}, "order.work.strategy is 'hopeful', not one of transactional, best_effort"),
        ({"success_exit_codes": [0, "3010"]}, "order.work.success_exit_codes is [0, '3010']"),
        ({"env": {"A": 1}}, "order.work.env.A is 1, not a string"),
        ({"stop_on_failure": "yes"}, "order.work.stop_on_failure is 'yes', not bool"),
        ({"steps": ["uptime"]}, "order.work.steps holds 'uptime', not an object"),
        ({"steps": [{"index": 0, "run": "a", "timeout_seconds": 0}]}, "order.work.steps.timeout_seconds is 0"),
    ],
)
def test_wrong_work_is_named_with_its_field_and_value(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(words)):
        protocol.parse_order(json.dumps(ORDER | {"work": ORDER["work"] | changes}))


@given(
    st.dictionaries(
        st.sampled_from(["order_id", "run_id", "through", "server_time", "nonce", "protocol", "heartbeat_seconds"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(str),
    ),
    st.sampled_from([*SERVER_SAYS, "teleport"]),
)
def test_no_fields_break_the_reading_of_a_message(fields: dict[str, Any], kind: str) -> None:
    with contextlib.suppress(ProtocolError):
        protocol.parse_server_message(json.dumps({**fields, "type": kind}))


def _golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def _as_json(message: protocol.ServerMessage) -> dict[str, Any]:
    values = asdict(message)
    return {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in values.items()
    }


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
