"""The plain-Python twin of the SCSI engine's reservations (storvsp.md 9.11, 11): several nexuses on one unit."""

from dataclasses import dataclass, field

WRITE_EXCLUSIVE, EXCLUSIVE, WRITE_REGISTRANTS, EXCLUSIVE_REGISTRANTS, WRITE_ALL, EXCLUSIVE_ALL = TYPES = (
    1,
    3,
    5,
    6,
    7,
    8,
)
ALL = (WRITE_ALL, EXCLUSIVE_ALL)
SHARED = (WRITE_REGISTRANTS, EXCLUSIVE_REGISTRANTS, *ALL)
WRITES_ONLY = (WRITE_EXCLUSIVE, WRITE_REGISTRANTS, WRITE_ALL)
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, REGISTER_AND_MOVE = range(8)
PREEMPTED, RELEASED, UNREGISTERED, RESET = 0x2A03, 0x2A04, 0x2A05, 0x2900

GOOD = (0, 0)
CONFLICT = (0x18, 0)


def check(asc):
    return (2, asc)


@dataclass
class Reservations:
    """keys: nexus -> key, in the order of registration; kind and holder: the persistent reservation; reserver: the
    nexus that holds the unit by RESERVE; attentions: what waits for each nexus."""

    nexuses: list
    keys: dict = field(default_factory=dict)
    kind: int = 0
    holder: object = None
    reserver: object = None
    generation: int = 0
    attentions: dict = field(default_factory=dict)

    # ---- unit attentions

    def tell(self, nexus, asc):
        waiting = self.attentions.setdefault(nexus, set())
        if asc == RESET:
            waiting.clear()
        if RESET not in waiting:
            waiting.add(asc)

    def take(self, nexus):
        """The most important one, 0: none."""
        waiting = self.attentions.get(nexus, set())
        if not waiting:
            return 0
        found = min(waiting)
        waiting.remove(found)
        return found

    def reset(self):
        self.reserver = None
        for nexus in self.nexuses:
            self.tell(nexus, RESET)

    # ---- what a nexus may do

    def holds(self, nexus):
        if not self.kind or nexus not in self.keys:
            return False
        return self.kind in ALL or nexus == self.holder

    def may(self, nexus, write):
        if self.reserver not in (None, nexus):
            return False
        if not self.kind or self.holds(nexus) or (self.kind in SHARED and nexus in self.keys):
            return True
        return not write and self.kind in WRITES_ONLY

    # ---- RESERVE and RELEASE

    def reserve(self, nexus):
        if self.keys or self.reserver not in (None, nexus):
            return CONFLICT
        self.reserver = nexus
        return GOOD

    def release(self, nexus):
        if self.keys:
            return CONFLICT
        if self.reserver == nexus:
            self.reserver = None
        return GOOD

    def lost(self, nexus):
        if self.reserver == nexus:
            self.reserver = None
        self.attentions.pop(nexus, None)

    # ---- PERSISTENT RESERVE OUT

    def out(self, nexus, action, kind, key, action_key, target=None, unregister=False):
        if self.reserver is not None:
            return CONFLICT
        known = nexus in self.keys
        if action != REGISTER_AND_IGNORE:
            if known and self.keys[nexus] != key:
                return CONFLICT
            if not known and (action != REGISTER or key != 0):
                return CONFLICT
        result = {
            REGISTER: lambda: self.register(nexus, action_key),
            REGISTER_AND_IGNORE: lambda: self.register(nexus, action_key),
            RESERVE: lambda: self.establish(nexus, kind),
            RELEASE: lambda: self.give_up(nexus, kind),
            CLEAR: lambda: self.clear(nexus),
            PREEMPT: lambda: self.preempt(nexus, kind, action_key),
            PREEMPT_AND_ABORT: lambda: self.preempt(nexus, kind, action_key),
            REGISTER_AND_MOVE: lambda: self.move(nexus, action_key, target, unregister),
        }[action]()
        if result == GOOD and action not in (RESERVE, RELEASE):
            self.generation += 1
        return result

    def register(self, nexus, key):
        if key:
            self.keys[nexus] = key
        elif nexus in self.keys:
            held = self.holds(nexus)
            del self.keys[nexus]
            if held and (self.kind not in ALL or not self.keys):
                self.end(nexus)
        return GOOD

    def end(self, by):
        if self.kind in SHARED:
            for other in self.keys:
                if other != by:
                    self.tell(other, RELEASED)
        self.kind, self.holder = 0, None

    def establish(self, nexus, kind):
        if not self.kind:
            self.kind, self.holder = kind, nexus
        elif not self.holds(nexus) or kind != self.kind:
            return CONFLICT
        return GOOD

    def give_up(self, nexus, kind):
        if self.holds(nexus):
            if kind != self.kind:
                return check(0x2604)
            self.end(nexus)
        return GOOD

    def clear(self, nexus):
        for other in self.keys:
            if other != nexus:
                self.tell(other, PREEMPTED)
        self.keys.clear()
        self.kind, self.holder = 0, None
        return GOOD

    def preempt(self, nexus, kind, key):
        everyone = self.kind in ALL and key == 0
        if key == 0 and not everyone:
            return check(0x2600)
        takes_over = everyone or (self.kind and self.kind not in ALL and self.keys[self.holder] == key)
        gone = [other for other, theirs in self.keys.items() if everyone or theirs == key]
        if takes_over:
            gone = [other for other in gone if other != nexus]
        elif not gone:
            return CONFLICT
        for other in gone:
            del self.keys[other]
            if other != nexus:
                self.tell(other, UNREGISTERED)
        if takes_over:
            if kind != self.kind:
                for other in self.keys:
                    if other != nexus:
                        self.tell(other, RELEASED)
            self.kind, self.holder = kind, nexus
        elif not self.keys:
            self.kind, self.holder = 0, None
        return GOOD

    def move(self, nexus, key, target, unregister):
        if not self.holds(nexus) or self.kind in ALL:
            return CONFLICT
        if key == 0 or target == nexus:
            return check(0x2600)
        self.keys[target] = key
        self.holder = target
        if unregister:
            del self.keys[nexus]
        return GOOD

    # ---- PERSISTENT RESERVE IN

    def read_keys(self):
        body = b"".join(key.to_bytes(8) for key in self.keys.values())
        return self.generation.to_bytes(4) + len(body).to_bytes(4) + body

    def read_reservation(self):
        if not self.kind:
            return self.generation.to_bytes(4) + bytes(4)
        key = 0 if self.kind in ALL else self.keys[self.holder]
        body = key.to_bytes(8) + bytes(5) + bytes([self.kind, 0, 0])
        return self.generation.to_bytes(4) + len(body).to_bytes(4) + body

    def read_full_status(self):
        body = b""
        for nexus, key in self.keys.items():
            holds = self.holds(nexus)
            body += key.to_bytes(8) + bytes(4) + bytes([holds, self.kind if holds else 0]) + bytes(4) + b"\0\1"
            body += (24).to_bytes(4) + b"\4" + bytes(7) + nexus
        return self.generation.to_bytes(4) + len(body).to_bytes(4) + body
