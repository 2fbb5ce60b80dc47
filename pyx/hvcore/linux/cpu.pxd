from hvcore.linux.spin cimport SpinBudget

cdef SpinBudget *spin_budget() noexcept nogil
