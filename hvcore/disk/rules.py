"""Rules for hvcore.disk.filter: what is done to which requests of a disk. A rule is a dict, so that it can be JSON.

Which requests it looks at, by default all:

- "operations": "read", "write", "flush", "trim", or a list of them
- "offset", "length": those that touch this range (bytes); a flush touches none

On which of those it acts, by default all: their numbers count from 1, in the order in which they come.

- "after": n: not on the first n
- "every": n: then on the n-th, the 2n-th, ...
- "probability": p, "seed": s: on each with probability p, drawn from the seed and the request's number alone
- "times": n: at most n times

What it does:

- "delay_us": holds the request up for so many microseconds
- "error": ends it with that status (STATUSES), the medium is not touched; "io_error" is the read or the write error, as
  the operation is
- "tear": n: of a write only the first n bytes reach the medium; "then" is "error" (a write error, the default),
  "success", or "cut": a write error, and from then on nothing reaches the medium or comes from it, as if the power
  were off
- "space": n: a disk with n bytes of space left: each "block" (bytes, a power of two) that a write touches for the first
  time since the rule came takes one block of it, and a write that needs more than is left ends with "no_space", having
  written nothing. A trim gives back the blocks that it covers. Acts on every write; none of the choices above
- "log": true: records the request and how it ended

"delay_us" and "log" go with each other and with any one of the rest. The rules look at a request one after the other,
until one with "error", "tear" or "space" acts on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPERATIONS = ("read", "write", "flush", "trim")
STATUSES = {
    "range": -1,
    "read_only": -2,
    "read_error": -3,
    "write_error": -4,
    "no_space": -5,
    "unsupported": -7,
    "closed": -8,
    "corrupt": -9,
}
IO_ERROR = 1  # FILTER_IO_ERROR
ERRORS = {**STATUSES, "io_error": IO_ERROR}
THEN = ("error", "success", "cut")
RULES_MAX = 64
DELAY_MAX_US = 3600 * 1_000_000
BLOCK = 65536
BLOCKS_MAX = 1 << 22
WORD = 1 << 64
CHOICES = ("after", "every", "times", "probability", "seed")
KEYS = ("operations", "offset", "length", *CHOICES, "delay_us", "error", "tear", "then", "space", "block", "log")


@dataclass(frozen=True)
class Rule:
    """A rule as the filter has it. operations: bit n for OPERATIONS[n]; range: first byte and end, None: everywhere."""

    operations: int
    range: tuple[int, int] | None
    after: int
    every: int
    times: int
    chance: int  # of 2**32
    seed: int
    delay_ns: int
    fate: str  # "pass", "error", "tear", "cut", "space"
    status: int
    bytes: int
    block: int
    log: bool


def parse(rules: Any, size: int | None = None) -> list[Rule]:
    """size: bytes of the disk, None where it is not known yet. ValueError: the first fault, with the number of its rule
    (from 0) and the key."""
    if not isinstance(rules, Sequence) or isinstance(rules, str | bytes):
        raise ValueError(f"rules are a list of dicts, not {rules!r}")
    if len(rules) > RULES_MAX:
        raise ValueError(f"a disk has at most {RULES_MAX} rules, not {len(rules)}")
    made = []
    for number, rule in enumerate(rules):
        try:
            made.append(parse_rule(rule, size))
        except ValueError as error:
            raise ValueError(f"rule {number}: {error}") from None
    return made


def parse_rule(rule: Any, size: int | None) -> Rule:
    if not isinstance(rule, Mapping):
        raise ValueError(f"a dict, not {rule!r}")
    for key in rule:
        if key not in KEYS:
            raise ValueError(f"there is no key {key!r}; the keys are {', '.join(KEYS)}")
    fates = [key for key in ("error", "tear", "space") if key in rule]
    if len(fates) > 1:
        raise ValueError(f'"{fates[1]}" does not go with "{fates[0]}": a request ends in one way')
    for key, partner in (("then", "tear"), ("block", "space"), ("seed", "probability")):
        if key in rule and partner not in rule:
            raise ValueError(f'"{key}" says nothing without "{partner}"')
    log = rule.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f'"log" is true or false, not {log!r}')
    if not fates and "delay_us" not in rule and not log:
        raise ValueError('it does nothing: "delay_us", "error", "tear", "space" or "log" is missing')
    operations = operations_of(rule, fates)
    fate, status, count, block = fate_of(rule, fates, size)
    return Rule(
        operations=operations,
        range=range_of(rule, operations),
        after=whole(rule, "after", 0),
        every=whole(rule, "every", 1, least=1),
        times=whole(rule, "times", 0, least=1),
        chance=round(number(rule, "probability", 1, most=1) * (1 << 32)),
        seed=whole(rule, "seed", 0),
        delay_ns=round(number(rule, "delay_us", 0, most=DELAY_MAX_US) * 1000),
        fate=fate,
        status=status,
        bytes=count,
        block=block,
        log=log,
    )


def operations_of(rule: Mapping[str, Any], fates: list[str]) -> int:
    only_writes = fates and fates[0] != "error"
    given = rule.get("operations", ["write"] if only_writes else list(OPERATIONS))
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or any(name not in OPERATIONS for name in names):
        raise ValueError(f'"operations" is one or some of {", ".join(OPERATIONS)}, not {given!r}')
    if only_writes and set(names) != {"write"}:
        raise ValueError(f'"operations" is "write" beside "{fates[0]}", not {given!r}')
    return sum(1 << OPERATIONS.index(name) for name in set(names))


def range_of(rule: Mapping[str, Any], operations: int) -> tuple[int, int] | None:
    if "offset" not in rule and "length" not in rule:
        return None
    if operations == 1 << OPERATIONS.index("flush"):
        raise ValueError('"offset" and "length" match no flush, which has no place')
    first = whole(rule, "offset", 0)
    return first, min(first + whole(rule, "length", WORD - 1, least=1), WORD - 1)


def fate_of(rule: Mapping[str, Any], fates: list[str], size: int | None) -> tuple[str, int, int, int]:
    """Fate, status, bytes and block."""
    if "error" in fates:
        if not isinstance(rule["error"], str) or rule["error"] not in ERRORS:
            raise ValueError(f'"error" is one of {", ".join(ERRORS)}, not {rule["error"]!r}')
        return "error", ERRORS[rule["error"]], 0, 0
    if "tear" in fates:
        then = rule.get("then", "error")
        if then not in THEN:
            raise ValueError(f'"then" is one of {", ".join(THEN)}, not {then!r}')
        status = 0 if then == "success" else STATUSES["write_error"]
        return "cut" if then == "cut" else "tear", status, whole(rule, "tear", 0), 0
    if "space" in fates:
        for key in CHOICES:
            if key in rule:
                raise ValueError(f'"{key}" does not go with "space", which looks at every write')
        least = BLOCK
        while size is not None and size // least > BLOCKS_MAX:
            least *= 2
        block = whole(rule, "block", least, least=512)
        if block & (block - 1) or block > 1 << 40:
            raise ValueError(f'"block" is a power of two up to 2**40, not {block}')
        if size is not None and size // block > BLOCKS_MAX:
            raise ValueError(f'"block" is at least {least} for a disk of {size} bytes, not {block}')
        return "space", STATUSES["no_space"], whole(rule, "space", 0), block
    return "pass", 0, 0, 0


def whole(rule: Mapping[str, Any], key: str, default: int, *, least: int = 0) -> int:
    value = rule.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or (key in rule and not least <= value < WORD):
        raise ValueError(f'"{key}" is a whole number from {least} on, not {value!r}')
    return value


def number(rule: Mapping[str, Any], key: str, default: int, *, most: int) -> float:
    value = rule.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f'"{key}" is a number from 0 to {most}, not {value!r}')
    return value
