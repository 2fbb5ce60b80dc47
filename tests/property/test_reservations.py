"""Reservations of three initiators on one unit, against their plain-Python twin."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hvcore.disk.ram import RamDisk
from hvcore.scsi import LogicalUnit, Target
from tests.reference.reservations import REGISTER_AND_MOVE, TYPES, Reservations

NEXUSES = [bytes([n]) * 16 for n in (1, 2, 3)]
nexuses = st.sampled_from(NEXUSES)
keys = st.sampled_from([0, 0xA, 0xB])
kinds = st.sampled_from(TYPES)
rarely = st.integers(0, 9).map(lambda n: n == 9)

READ = bytes.fromhex("28 00 00000000 00 0001 00")
WRITE = bytes.fromhex("2a 00 00000000 00 0001 00")
COMMANDS = [
    (READ, b"", 512, False), (WRITE, bytes(512), 0, True), (bytes.fromhex("2f 00 00000000 00 0001 00"), b"", 0, False),
    (bytes.fromhex("35 00 00000000 00 0000 00"), b"", 0, True),
    (bytes.fromhex("89 00 0000000000000000 00000001 0000"), bytes(1024), 0, True),
    (bytes.fromhex("9e 12 0000000000000000 00000018 0000"), b"", 24, False),
    (bytes.fromhex("1b 00 00 00 00 00"), b"", 0, True),
]  # fmt: skip


class Sharing(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.disk = RamDisk(1 << 20)
        self.unit = LogicalUnit(self.disk)
        self.targets = {nexus: self.attach(nexus) for nexus in NEXUSES}
        self.twin = Reservations(NEXUSES)

    def attach(self, nexus):
        return Target(self.disk, unit=self.unit, nexus=nexus)

    def run(self, nexus, cdb, data=b"", allocation=0):
        """(SCSI status, ASC << 8 | ASCQ), after what waits for the nexus was told."""
        result = self.targets[nexus].execute(cdb, data, allocation)
        while waiting := self.twin.take(nexus):
            assert (result.status, result.sense_key, result.asc << 8 | result.ascq) == (2, 6, waiting)
            result = self.targets[nexus].execute(cdb, data, allocation)
        self.last = result
        assert not result.status or (result.data_in, result.transferred) == (b"", 0)
        assert result.status != 0x18 or (result.srb_status, result.sense) == (4, b"")
        return result.status, result.asc << 8 | result.ascq

    def expect(self, nexus, expected, cdb, data=b"", allocation=0):
        assert self.run(nexus, cdb, data, allocation) == expected

    def key_of(self, nexus, wrong):
        """The nexus' own key mostly: with others nothing happens."""
        return 0xC if wrong else self.twin.keys.get(nexus, 0)

    def reserve_out(self, nexus, action, kind, key, action_key):
        cdb = bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])
        status = self.run(nexus, cdb, key.to_bytes(8) + action_key.to_bytes(8) + bytes(8))
        assert status == self.twin.out(nexus, action, kind, key, action_key)

    @initialize(registered=st.lists(keys, min_size=3, max_size=3))
    def begin(self, registered):
        for nexus, key in zip(NEXUSES, registered, strict=True):
            self.reserve_out(nexus, 6, 1, 0, key)

    @rule(nexus=nexuses, ignore=st.booleans(), wrong=rarely, action_key=keys)
    def register(self, nexus, ignore, wrong, action_key):
        self.reserve_out(nexus, 6 if ignore else 0, 1, self.key_of(nexus, wrong), action_key)

    @rule(nexus=nexuses, action=st.sampled_from([1, 1, 2, 2, 4, 4, 5]), kind=kinds, same=st.booleans(), wrong=rarely,
          action_key=keys)  # fmt: skip
    def hold(self, nexus, action, kind, same, wrong, action_key):
        kind = self.twin.kind or kind if same else kind
        self.reserve_out(nexus, action, kind, self.key_of(nexus, wrong), action_key)

    @rule(nexus=nexuses, wrong=rarely)
    def clear(self, nexus, wrong):
        self.reserve_out(nexus, 3, 1, self.key_of(nexus, wrong), 0)

    @rule(nexus=nexuses, other=nexuses, wrong=rarely, action_key=keys, unregister=st.booleans())
    def move(self, nexus, other, wrong, action_key, unregister):
        key = self.key_of(nexus, wrong)
        cdb = bytes([0x5F, 7, 0, 0, 0, 0, 0, 0, 48, 0])
        body = key.to_bytes(8) + action_key.to_bytes(8) + bytes([0, 2 * unregister, 0, 1]) + (24).to_bytes(4)
        status = self.run(nexus, cdb, body + b"\4" + bytes(7) + other)
        assert status == self.twin.out(nexus, REGISTER_AND_MOVE, 0, key, action_key, other, unregister)

    @rule(nexus=nexuses, ten=st.booleans())
    def reserve(self, nexus, ten):
        cdb = bytes([0x56 if ten else 0x16]) + bytes(9 if ten else 5)
        status = self.run(nexus, cdb)
        assert status == self.twin.reserve(nexus)

    @rule(nexus=nexuses, ten=st.booleans())
    def release(self, nexus, ten):
        cdb = bytes([0x57 if ten else 0x17]) + bytes(9 if ten else 5)
        status = self.run(nexus, cdb)
        assert status == self.twin.release(nexus)

    @rule(nexus=nexuses, command=st.sampled_from(COMMANDS))
    def access(self, nexus, command):
        cdb, data, allocation, write = command
        self.expect(nexus, (0 if self.twin.may(nexus, write) else 0x18, 0), cdb, data, allocation)

    @rule(nexus=nexuses)
    def ready(self, nexus):
        """TEST UNIT READY conflicts with RESERVE alone."""
        self.expect(nexus, (0 if self.twin.reserver in (None, nexus) else 0x18, 0), bytes(6))

    @rule(nexus=nexuses)
    def always_allowed(self, nexus):
        target = self.targets[nexus]
        for cdb, allocation in ((bytes.fromhex("12 00 00 00 24 00"), 36), (bytes.fromhex("a0") + bytes(11), 16)):
            assert target.execute(cdb, allocation=allocation).status == 0

    @rule(nexus=nexuses)
    def reset(self, nexus):
        self.unit.reset()
        self.twin.reset()

    @rule(nexus=nexuses)
    def come_again(self, nexus):
        """A nexus that is lost and comes back: persistent registrations stay."""
        self.targets[nexus].close()
        self.twin.lost(nexus)
        self.targets[nexus] = self.attach(nexus)

    @rule(nexus=nexuses, action=st.integers(0, 3), allocation=st.sampled_from([0, 7, 8, 24, 56, 4096]))
    def reserve_in(self, nexus, action, allocation):
        cdb = bytes([0x5E, action, 0, 0, 0, 0, 0]) + allocation.to_bytes(2) + b"\0"
        self.expect(nexus, (0x18 if self.twin.reserver else 0, 0), cdb, allocation=allocation)
        answers = [self.twin.read_keys, self.twin.read_reservation, None, self.twin.read_full_status]
        if self.twin.reserver:
            return
        if action == 2:
            assert self.last.data_in == bytes.fromhex("0008 00 80 ea01 0000")[:allocation]
        else:
            assert self.last.data_in == answers[action]()[:allocation]

    @invariant()
    def agree(self):
        assert self.unit.registrations == self.twin.keys
        assert self.unit.generation == self.twin.generation
        held = None if self.twin.kind in (7, 8) else self.twin.holder
        assert self.unit.reservation == ((self.twin.kind, held) if self.twin.kind else None)

    def teardown(self):
        for target in self.targets.values():
            target.close()


Sharing.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=150, stateful_step_count=30)
test_reservations = Sharing.TestCase
