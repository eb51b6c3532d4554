"""Orders and answers have the very layout of dataplane/api.h."""

import pytest

from vswitch import orders
from vswitch._dataplane import ffi, lib
from vswitch.dataplane import drop_reasons
from vswitch.drops import DROP_REASONS

ORDERS: list[tuple[orders.Order, str, str, dict[str, object]]] = [
    (orders.Hello(), "ORDER_HELLO", "order", {}),
    (
        orders.SwitchAdd(3, 100, 7),
        "ORDER_SWITCH_ADD",
        "order_switch",
        {"switch_id": 3, "fdb_size": 100, "ageing_s": 7},
    ),
    (orders.SwitchSet(3, 100, 7), "ORDER_SWITCH_SET", "order_switch", {"switch_id": 3, "ageing_s": 7}),
    (orders.SwitchDelete(3), "ORDER_SWITCH_DELETE", "order_switch", {"switch_id": 3}),
    (
        orders.PortAdd(9, 2, 4, 5, 6, b"/a"),
        "ORDER_PORT_ADD",
        "order_port_add",
        {"port_id": 9, "kind": 2, "queues": 4, "flags": 5, "fdb_limit": 6, "address_length": 2},
    ),
    (
        orders.PortSet(9, 3, 1, 70000, 1500, bytes(range(6)), 77),
        "ORDER_PORT_SET",
        "order_port_set",
        {
            "port_id": 9,
            "switch_id": 3,
            "flags": 1,
            "storm_limit": 70000,
            "mtu": 1500,
            "mac": bytes(range(6)),
            "connection_limit": 77,
        },
    ),
    (orders.PortDelete(9), "ORDER_PORT_DELETE", "order_port", {"port_id": 9}),
    (orders.GetPortState(9), "ORDER_PORT_STATE", "order_port", {"port_id": 9}),
    (orders.OpenFlow(9, 2, b""), "ORDER_OPENFLOW", "order_openflow", {"target": 9, "pipeline": 2}),
    (
        orders.FdbAdd(3, 9, 100, b"abcdef"),
        "ORDER_FDB_ADD",
        "order_fdb",
        {"switch_id": 3, "port_id": 9, "vid": 100, "mac": b"abcdef"},
    ),
    (orders.FdbDelete(3, 9, 100, b"abcdef"), "ORDER_FDB_DELETE", "order_fdb", {"vid": 100, "mac": b"abcdef"}),
    (orders.FdbFlush(3, 9), "ORDER_FDB_FLUSH", "order_fdb", {"switch_id": 3, "port_id": 9, "vid": 0xFFFF}),
    (orders.FdbList(3), "ORDER_FDB_LIST", "order_fdb", {"switch_id": 3, "port_id": 0}),
    (orders.TraceFrame(9, b"", (7,)), "ORDER_TRACE", "order_trace", {"port_id": 9, "length": 0}),
    (
        orders.CaptureStart(9, 128, 1 << 22),
        "ORDER_CAPTURE_START",
        "order_capture",
        {"port_id": 9, "snaplen": 128, "ring_bytes": 1 << 22},
    ),
    (orders.CaptureStop(9), "ORDER_CAPTURE_STOP", "order_port", {"port_id": 9}),
    (orders.GetWorkers(), "ORDER_WORKERS", "order", {}),
    (orders.Stop(), "ORDER_STOP", "order", {}),
    (orders.ConnectionList(9, 5), "ORDER_CONNECTION_LIST", "order_connection", {"port_id": 9, "after": 5}),
    (orders.ConnectionFlush(9), "ORDER_CONNECTION_FLUSH", "order_connection", {"port_id": 9}),
]


@pytest.mark.parametrize(("order", "number", "struct", "fields"), ORDERS)
def test_an_order_is_what_c_reads(
    order: orders.Order, number: str, struct: str, fields: dict[str, object]
) -> None:
    message = orders.pack(order, 0x123456789, 2)
    assert len(message) == ffi.sizeof(f"struct {struct}")
    c = ffi.from_buffer(f"struct {struct} *", message)
    head = c if struct == "order" else c.order
    assert (head.length, head.type, head.fds, head.id) == (len(message), getattr(lib, number), 2, 0x123456789)
    for name, value in fields.items():
        found = getattr(c, name)
        assert (bytes(found) if isinstance(value, bytes) else found) == value, name


def test_every_order_of_the_header_is_known_here() -> None:
    assert sorted(order.kind for order, *_ in ORDERS) == list(
        range(lib.ORDER_HELLO, lib.ORDER_CONNECTION_FLUSH + 1)
    )


def test_a_port_state_is_read_as_c_writes_it() -> None:
    c = ffi.new(
        "struct port_state *", {"port_id": 7, "fault": 2, "link": 1, "connected": 1, "queues": 3, "packed": 1}
    )
    c.error, c.features, c.reconnects, c.fdb_count = -5, 1 << 40, 6, 8
    state = orders.parse_port_state(bytes(ffi.buffer(c))[orders.ANSWER_BYTES :])
    assert state == orders.PortStateRecord(7, 2, True, True, 3, True, -5, 1 << 40, 6, 8)


def test_lists_are_read_as_c_writes_them() -> None:
    fdb = ffi.new(
        "struct fdb_record[2]", [{"port_id": 1, "vid": 2, "mac": b"abcdef", "is_static": 1}, {"idle_s": 9}]
    )
    answer = orders.Answer(lib.ORDER_FDB_LIST, 1, 0, 2, bytes(ffi.buffer(fdb)))
    assert orders.parse_fdb(answer)[0] == orders.FdbRecord(1, 2, b"abcdef", True, 0)
    assert orders.parse_fdb(answer)[1].idle_s == 9
    workers = ffi.new("struct worker_state[1]", [{"cpu": 1, "queues": 2, "guest_bytes": 3, "busy_ns": 4}])
    found = orders.parse_workers(orders.Answer(lib.ORDER_WORKERS, 1, 0, 1, bytes(ffi.buffer(workers))))[0]
    assert (found.cpu, found.queues, found.guest_bytes, found.busy_ns) == (1, 2, 3, 4)


def test_a_trace_record_is_read_as_c_writes_it() -> None:
    fields = {
        "kind": 2,
        "pipeline": 1,
        "table": 3,
        "priority": 4,
        "port": 5,
        "value": 6,
        "cookie": 7,
        "ip_proto": 8,
    }
    c = ffi.new(
        "struct trace_record[1]", [{**fields, "eth_type": 0x800, "l4_dst": 80, "ip_dst": bytes(range(16))}]
    )
    record = orders.parse_trace(orders.Answer(lib.ORDER_TRACE, 1, 0, 1, bytes(ffi.buffer(c))))[0]
    assert {name: getattr(record, name) for name in fields} == fields
    assert (record.eth_type, record.l4_dst, record.ip_dst) == (0x800, 80, bytes(range(16)))


@pytest.mark.parametrize("message", [b"", bytes(23), (100).to_bytes(4, "little") + bytes(20), bytes(24)])
def test_answers_shorter_than_they_say_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="an answer of"):
        orders.parse_answer(message)


def test_drop_reasons_are_those_of_the_header() -> None:
    assert [(name, sentence) for name, sentence, _ in DROP_REASONS] == drop_reasons()


def test_limits_are_those_of_the_header() -> None:
    assert (orders.PORTS_MAX, orders.WORKERS_MAX) == (lib.PORTS_MAX, lib.WORKERS_MAX)
    assert (orders.DROP_SLOTS, orders.ADDRESS_MAX) == (lib.DROP_SLOTS, lib.ADDRESS_MAX)
    assert (orders.API_VERSION, len(orders.FAULTS)) == (lib.API_VERSION, lib.FAULT_DEVICE)
