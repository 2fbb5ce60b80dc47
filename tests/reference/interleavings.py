"""Every interleaving of a few threads under total store order, searched breadth first.

A thread is a generator. It yields one operation for each access to shared memory and each system call, and is sent the
result. Stores wait in the thread's buffer, first in first out, until memory takes them; fences, locked operations and
system calls need an empty buffer. Between two operations a thread's state is where its generators stand and what their
variables hold: a result that is still needed must be in a variable.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

Operation = tuple[Any, ...]
Steps = Generator[Operation, Any, Any]
Program = Callable[[], Steps]
Memory = tuple[int, ...]
Buffer = tuple[tuple[str, int], ...]
Thread = tuple[int, bool, Buffer]  # private state, whether it sleeps on a futex, stores on their way
State = tuple[Memory, tuple[Thread, ...]]

ENDED = 0
FENCE: Operation = ("fence",)


def load(word: str) -> Operation:
    return "load", word


def store(word: str, value: int) -> Operation:
    return "store", word, value


def exchange(word: str, value: int) -> Operation:
    return "exchange", word, value


def compare_exchange(word: str, expected: int, value: int) -> Operation:
    return "compare_exchange", word, value, expected


def futex_wait(word: str, expected: int) -> Operation:
    """Compares and goes to sleep in one step."""
    return "futex_wait", word, expected


def futex_wake(word: str) -> Operation:
    return "futex_wake", word


def eventfd_ring(bell: str) -> Operation:
    return "exchange", bell, 1


def epoll_wait(bell: str) -> Operation:
    """Edge-triggered: returns once for all writes before it."""
    return "epoll_wait", bell


class Threads:
    """Private states as numbers. Generators cannot be copied: a state keeps one way to it and is reached anew."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.operations: list[Operation | None] = [None]  # the next one of each private state; None: ended
        self.ways: list[tuple[Program | None, tuple[Any, ...]]] = [(None, ())]
        self.successors: dict[tuple[int, Any], int] = {}

    def resume(self, private: int, result: Any) -> int:
        key = private, result
        if key not in self.successors:
            program, way = self.ways[private]
            assert program is not None
            self.successors[key] = self.reach(program, (*way, result))
        return self.successors[key]

    def reach(self, program: Program, way: tuple[Any, ...]) -> int:
        """The private state after these results."""
        generator = program()
        try:
            operation = next(generator)
            for result in way:
                operation = generator.send(result)
        except StopIteration:
            return ENDED
        key = program, operation, *places(generator)
        if key not in self.numbers:
            self.numbers[key] = len(self.ways)
            self.ways.append((program, way))
            self.operations.append(operation)
        return self.numbers[key]


def places(generator: Any) -> Iterator[Any]:
    while generator is not None:
        frame = generator.gi_frame
        yield frame.f_code, frame.f_lasti, tuple(sorted(frame.f_locals.items()))
        generator = generator.gi_yieldfrom


class Search:
    """programs: the threads by name. words: shared memory at first. mortal: a thread that may end at any moment, which
    writes 1 to "end of file"."""

    def __init__(self, programs: dict[str, Program], words: dict[str, int], mortal: str = "") -> None:
        self.names = list(programs)
        self.programs = list(programs.values())
        self.words = {word: i for i, word in enumerate(words)}
        self.memory = tuple(words.values())
        self.mortal = mortal
        self.threads = Threads()
        self.states = 0

    def stuck(self) -> list[str]:
        """The shortest way to where nothing can happen although a thread has not ended; empty: there is none."""
        start: State = self.memory, tuple(self.settle(self.threads.reach(each, ())) for each in self.programs)
        before: dict[State, tuple[State, str] | None] = {start: None}
        todo = deque([start])
        while todo:
            state = todo.popleft()
            last = True
            for name, after in self.steps(state):
                last = False
                if after not in before:
                    before[after] = state, name
                    todo.append(after)
            if last and any(private != ENDED for private, _, _ in state[1]):
                names = []
                while (step := before[state]) is not None:
                    state, name = step
                    names.append(name)
                return names[::-1]
        self.states = len(before)
        return []

    def settle(self, private: int, buffer: Buffer = ()) -> Thread:
        """Does at once what no other thread can see: stores into the buffer, and fences that find it empty."""
        while (operation := self.threads.operations[private]) is not None:
            if operation[0] == "store":
                buffer = (*buffer, operation[1:])
            elif operation[0] != "fence" or buffer:
                break
            private = self.threads.resume(private, None)
        return private, False, buffer

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        memory, threads = state
        for i, (private, asleep, buffer) in enumerate(threads):
            name = self.names[i]
            if buffer:
                thread = self.settle(private, buffer[1:])
                yield (
                    f"{name}'s {buffer[0]} reaches memory",
                    (self.written(memory, *buffer[0]), swap(threads, i, thread)),
                )
            operation = self.threads.operations[private]
            if operation is None or asleep:
                continue
            if name == self.mortal and not buffer:
                yield f"{name} ends", (self.written(memory, "end of file", 1), swap(threads, i, (ENDED, False, ())))
            if operation[0] == "load" or (not buffer and operation[0] != "fence"):
                for after in self.perform(memory, threads, i, operation):
                    yield f"{name}: {operation}", after

    def perform(self, memory: Memory, threads: tuple[Thread, ...], i: int, operation: Operation) -> Iterator[State]:
        private, _, buffer = threads[i]
        kind, word, *arguments = operation
        value = memory[self.words[word]]
        result: int | None = value
        if kind == "load":
            result = next((stored for name, stored in reversed(buffer) if name == word), value)
        elif kind == "exchange":
            memory = self.written(memory, word, arguments[0])
        elif kind == "compare_exchange":
            result = value == arguments[1]
            memory = self.written(memory, word, arguments[0]) if result else memory
        elif kind == "epoll_wait":
            if not value:
                return
            memory = self.written(memory, word, 0)
        elif kind == "futex_wait":
            if value == arguments[0]:
                yield memory, swap(threads, i, (private, True, ()))
                return
            result = None
        elif kind == "futex_wake":
            threads = tuple(
                self.settle(self.threads.resume(other, None))
                if asleep and self.threads.operations[other][1] == word  # type: ignore[index]
                else (other, asleep, stores)
                for other, asleep, stores in threads
            )
            result = None
        yield memory, swap(threads, i, self.settle(self.threads.resume(private, result), buffer))

    def written(self, memory: Memory, word: str, value: int) -> Memory:
        at = self.words[word]
        return (*memory[:at], value, *memory[at + 1 :])


def swap(threads: tuple[Thread, ...], i: int, thread: Thread) -> tuple[Thread, ...]:
    return (*threads[:i], thread, *threads[i + 1 :])
