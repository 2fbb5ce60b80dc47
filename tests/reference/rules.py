"""What hvcore.disk.filter does to a disk, in plain Python, one request after the other."""

from typing import Any

SECTOR = 512
MASK = (1 << 64) - 1


def draw(seed: int, number: int) -> float:
    """splitmix64 of seed and number; from 0 to 1."""
    x = seed + number * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return ((x ^ x >> 31) >> 32) / (1 << 32)


class Twin:
    """A disk of zeros behind rules (dicts as in hvcore.disk.rules); `delayed` adds up what it does not wait for."""

    def __init__(self, size: int, rules: list[dict[str, Any]]) -> None:
        self.data = bytearray(size)
        self.rules = rules
        self.seen = [0] * len(rules)
        self.acted = [0] * len(rules)
        self.blocks: list[set[int]] = [set() for _ in rules]
        self.cut = False
        self.delayed = 0.0
        self.log: list[tuple[str, int, int, str]] = []

    def matches(self, rule: dict[str, Any], operation: str, offset: int, length: int) -> bool:
        default = ["write"] if "tear" in rule or "space" in rule else [operation]
        names = rule.get("operations", default)
        if operation not in ([names] if isinstance(names, str) else names):
            return False
        if "offset" not in rule and "length" not in rule:
            return True
        first = rule.get("offset", 0)
        covered = range(first, first + rule.get("length", 1 << 62))
        return operation != "flush" and length > 0 and offset < covered.stop and offset + length > covered.start

    def due(self, number: int, offset: int, length: int) -> bool:
        """Whether a rule acts on the request that it just counted."""
        rule, nth = self.rules[number], self.seen[number]
        if "space" in rule:
            block = rule.get("block", 65536)
            end = -(-(offset + length) // block) if length else 0
            wanted = set(range(offset // block, end)) - self.blocks[number]
            if (len(self.blocks[number]) + len(wanted)) * block > rule["space"]:
                return True
            self.blocks[number] |= wanted
            return False
        if self.acted[number] >= rule.get("times", 1 << 62) or nth <= rule.get("after", 0):
            return False
        if (nth - rule.get("after", 0)) % rule.get("every", 1):
            return False
        return draw(rule.get("seed", 0), nth) < rule.get("probability", 1)

    def request(self, operation: str, offset: int = 0, length: int = 0, data: bytes = b"") -> str:
        """Does the request; how it ends."""
        kept, status, logged = None, "ok", False
        broken = "read_error" if operation == "read" else "write_error"
        for number, rule in enumerate(self.rules):
            if not self.matches(rule, operation, offset, length):
                continue
            self.seen[number] += 1
            if not self.due(number, offset, length):
                continue
            self.acted[number] += 1
            self.delayed += rule.get("delay_us", 0)
            logged = logged or rule.get("log", False)
            if "error" in rule:
                kept, status = 0, broken if rule["error"] == "io_error" else rule["error"]
            elif "space" in rule:
                kept, status = 0, "no_space"
            elif "tear" in rule:
                kept = rule["tear"]
                status = "ok" if rule.get("then") == "success" else "write_error"
            if kept is not None:
                break
        if self.cut:
            kept, status = 0, broken
        elif kept is not None and "tear" in rule and rule.get("then") == "cut":
            self.cut = True
        if operation == "write":
            self.data[offset : offset + length] = data[:kept] + self.data[offset : offset + length][len(data[:kept]) :]
        if operation == "trim" and status == "ok":
            self.data[offset : offset + length] = bytes(length)
            for number, rule in enumerate(self.rules):
                if "space" in rule:
                    block = rule.get("block", 65536)
                    self.blocks[number] -= set(range(-(-offset // block), (offset + length) // block))
        if logged:
            self.log.append((operation, offset, length, status))
        return status
