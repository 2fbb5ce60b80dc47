"""The CPUs that this process may use, and its budget of spinners."""

from hvcore.linux.quota import usable_cpus

cdef SpinBudget BUDGET


cdef SpinBudget *spin_budget() noexcept nogil:
    return &BUDGET


def limit_spinners(limit: int | None = None) -> int:
    """Sets how many threads of this process may spin at once (None: its CPUs less one) and returns that."""
    BUDGET.limit = usable_cpus() - 1 if limit is None else max(0, limit)
    return BUDGET.limit


limit_spinners()
