"""What a check finds, and the list it is gathered in."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hvcore.errors import ImageDamaged, ImageError

DAMAGE, WARNING, NOTE = "damage", "warning", "note"
# Findings of one kind that are listed one by one: a broken table may have millions of broken entries.
LISTED = 64


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    structure: the part of the image, "header 1", "BAT entry 5", "log", "tail footer", ... offset: where it lies in the
    file, bytes; None: it has no one place. severity: "damage" (a rule of the format is broken, or data are at risk),
    "warning" (legal or harmless now, but risky), "note" (information). repair: what repair() does about it without any
    loss, in words; None: it cannot.
    """

    structure: str
    offset: int | None
    message: str
    severity: str
    repair: str | None = None


@dataclass
class Findings:
    """The findings so far, in the order of the search."""

    listed: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, Finding] = field(default_factory=dict)

    def damage(self, structure: str, offset: int | None, message: str, repair: str | None = None) -> None:
        self.listed.append(Finding(structure, offset, message, DAMAGE, repair))

    def warning(self, structure: str, offset: int | None, message: str, repair: str | None = None) -> None:
        self.listed.append(Finding(structure, offset, message, WARNING, repair))

    def note(self, structure: str, offset: int | None, message: str) -> None:
        self.listed.append(Finding(structure, offset, message, NOTE))

    def fault(self, error: ImageError, structure: str, offset: int | None, repair: str | None = None) -> None:
        """A broken rule as a codec names it; structure and offset: for those that name no place."""
        if isinstance(error, ImageDamaged):
            structure = error.structure or structure
            offset = offset if error.offset is None else error.offset
        self.damage(structure.removeprefix("the "), offset, str(error), repair)

    def faults(self, errors: Iterable[ImageError], structure: str, offset: int) -> bool:
        """All of them, or of very many the first ones and how many there are more; whether there was one."""
        count = 0
        for error in errors:
            if count < LISTED:
                self.fault(error, structure, offset)
            count += 1
        if count > LISTED:
            self.damage(structure, offset, f"{count - LISTED} more faults like these")
        return count > 0

    def room(self, kind: str) -> int:
        """How many more findings of the kind are listed."""
        return max(0, LISTED - self.counts.get(kind, 0))

    def many(self, kind: str, finding: Finding) -> None:
        """Lists one of a kind that there may be millions of."""
        if self.room(kind):
            self.listed.append(finding)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.kinds[kind] = finding

    def more(self, kind: str, count: int) -> None:
        """Counts `count` findings of the kind that are not listed; one was."""
        self.counts[kind] += count

    def summarise(self, structure: str) -> None:
        """Says how many findings were not listed, once all have been found."""
        for kind, count in self.counts.items():
            if count > LISTED:
                like = self.kinds[kind]
                message = f"{count - LISTED} more like: {like.message}"
                self.listed.append(Finding(structure, None, message, like.severity, like.repair))
        self.counts.clear()

    @property
    def hopeless(self) -> bool:
        """Whether there is damage that no repair mends."""
        return any(each.severity == DAMAGE and each.repair is None for each in self.listed)

    def withdraw(self, repair: str) -> None:
        """Takes back what was said of a repair that turned out to be impossible."""
        self.listed = [replace(each, repair=None) if each.repair == repair else each for each in self.listed]
