"""Whether an order is for this device and this time. Pure; signature and journal are checked by others."""

from __future__ import annotations

from datetime import datetime

from deployx_agent.protocol import Order, ProtocolError, parse_order


def check_order(
    body: str, *, installation_id: str, device_id: int, epoch: int, watermark: str, server_now: datetime
) -> Order:
    """Read an order whose signature is good and check that it is meant for this device and this time.

    Raises ProtocolError with the sentence that goes back to the server.
    """
    order = parse_order(body)
    if order.installation_id != installation_id or order.device_id != device_id:
        raise ProtocolError("The order is for another device or installation.")
    if order.epoch < epoch:
        raise ProtocolError(f"The order's epoch {order.epoch} is older than {epoch}, which this device has seen.")
    if order.issued_at.isoformat() < watermark:
        raise ProtocolError("The order is older than this device remembers.")
    if order.expires_at < server_now:
        raise ProtocolError("The order has expired on the way.")
    return order
