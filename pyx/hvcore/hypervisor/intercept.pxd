# Port intercepts of one child partition: four shared pages (docs/vmbus-user.md), made by the host, mapped by the child
# and by the worker that emulates the VM's devices.
#
# The I/O bitmap says which ports are intercepted. An access to one suspends the virtual processor: the message goes
# into its slot (ide.md 7.1), `posted` hands it to the worker, `answered` = that number resumes the processor. Strict
# alternation, so that two sequence words are all the synchronisation.
#
# The pages are in the child's hands. The worker fetches every field once and believes none; the child believes no
# more of the answer than the width of a register and the progress of a string. A side that corrupts the pages loses
# its own accesses and wake-ups, nothing else.
#
# Each sleep word has one waiter, which sets it, fences, looks once more, and sleeps on it as a futex; who changes it
# back to 0 wakes. Only worker_sleep has two wakers, child and host.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.linux.atomics cimport exchange32, fence_full, load_acquire32, load_relaxed32, store_release32
from hvcore.linux.spin cimport Spinner
from hvcore.linux.syscalls cimport futex_wake
from hvcore.memory.region cimport Region

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_INTERCEPT
    #define HV_INTERCEPT
    typedef struct { uint64_t base; uint32_t limit; uint16_t selector, attributes; } hv_segment_register;
    /* ide.md 7.1 */
    typedef struct {
        uint32_t vp_index;
        uint8_t instruction_length, access_type;
        uint16_t execution_state;
        hv_segment_register cs;
        uint64_t rip, rflags;
        uint16_t port;
        uint8_t access_info, instruction_byte_count;
        uint32_t reserved;
        uint64_t rax;
        uint8_t instruction_bytes[16];
        hv_segment_register ds, es;
        uint64_t rcx, rsi, rdi;
    } hv_port_intercept;
    _Static_assert(offsetof(hv_port_intercept, port) == 40, "port intercept");
    _Static_assert(offsetof(hv_port_intercept, rax) == 48, "port intercept");
    _Static_assert(offsetof(hv_port_intercept, ds) == 72, "port intercept");
    _Static_assert(offsetof(hv_port_intercept, rcx) == 104, "port intercept");
    _Static_assert(sizeof(hv_port_intercept) == 128, "port intercept");
    typedef struct {                    /* one virtual processor */
        uint32_t posted, epoch;         /* by the child: number of the access, epoch of the worker it is meant for */
        uint64_t reserved;
        uint32_t type;                  /* the SynIC message */
        uint8_t payload_size, flags;
        uint16_t message_reserved;
        uint64_t sender;
        hv_port_intercept body;
        uint8_t pad1[32];
        uint32_t answered, status;      /* by the worker */
        uint64_t rax, rcx, rsi, rdi;
        uint8_t pad2[24];
        uint32_t sleep;                 /* of the processor, which waits for `answered` or the epoch */
        uint8_t pad3[60];
    } hv_vp_slot;
    typedef struct { uint32_t line, sleep; uint8_t pad[56]; } hv_interrupt_line;
    typedef struct {
        uint8_t io_bitmap[8192];        /* bit p mod 8 of byte p / 8: port p is intercepted */
        uint32_t worker_epoch;          /* by the host; odd: a worker answers */
        uint32_t no_worker;             /* by the host; 1: and none will come */
        uint8_t pad1[56];
        uint32_t worker_sleep;          /* of the worker */
        uint8_t pad2[60];
        hv_interrupt_line interrupts[2];        /* IRQ 14, IRQ 15; the line by the worker */
        uint8_t pad3[4096 - 256];
        hv_vp_slot vp;
        uint8_t pad4[4096 - sizeof(hv_vp_slot)];
    } hv_intercept_pages;
    _Static_assert(offsetof(hv_vp_slot, body) == 32, "processor slot");
    _Static_assert(offsetof(hv_vp_slot, answered) == 192, "processor slot");
    _Static_assert(offsetof(hv_vp_slot, sleep) == 256, "processor slot");
    _Static_assert(offsetof(hv_intercept_pages, vp) == 12288, "intercept pages");
    _Static_assert(sizeof(hv_intercept_pages) == 16384, "intercept pages");
    #endif
    """
    ctypedef struct PortIntercept "hv_port_intercept":
        uint32_t vp_index
        uint8_t instruction_length
        uint8_t access_type
        uint64_t rflags
        uint16_t port
        uint8_t access_info          # bits 2:0 bytes, bit 3 string, bit 4 rep
        uint8_t instruction_byte_count
        uint64_t rax
        uint8_t instruction_bytes[16]
        uint64_t rcx
        uint64_t rsi
        uint64_t rdi
    ctypedef struct VpSlot "hv_vp_slot":
        uint32_t posted
        uint32_t epoch
        uint32_t type
        uint8_t payload_size
        PortIntercept body
        uint32_t answered
        uint32_t status              # InterceptStatus
        uint64_t rax
        uint64_t rcx
        uint64_t rsi
        uint64_t rdi
        uint32_t sleep
    ctypedef struct InterruptLine "hv_interrupt_line":
        uint32_t line                # 1: high
        uint32_t sleep
    ctypedef struct InterceptPages "hv_intercept_pages":
        uint8_t io_bitmap[8192]
        uint32_t worker_epoch
        uint32_t no_worker
        uint32_t worker_sleep
        InterruptLine interrupts[2]
        VpSlot vp
    enum:
        INTERCEPT_BYTES "sizeof(hv_intercept_pages)"

cdef extern from *:
    """
    #define HV_MESSAGE_IO_PORT_INTERCEPT 0x80010000u
    """
    const uint32_t IO_PORT_INTERCEPT "HV_MESSAGE_IO_PORT_INTERCEPT"

cdef enum:
    ACCESS_READ = 0
    ACCESS_WRITE = 1
    INFO_SIZE = 7
    INFO_STRING = 8
    INFO_REP = 16
    IDE_IRQ = 14                     # of the first line; the second is 15

cdef enum InterceptStatus:
    INTERCEPT_DONE = 0
    INTERCEPT_LOST = 1               # meant for an earlier worker: nothing was done


cdef inline bint intercepted(const InterceptPages *pages, uint32_t port) noexcept nogil:
    return pages.io_bitmap[port >> 3] >> (port & 7) & 1


# Whether any port of the access is intercepted; one that wraps the port space always is.
cdef inline bint access_intercepted(const InterceptPages *pages, uint32_t port, uint32_t width) noexcept nogil:
    cdef uint32_t i
    if port + width > 0x10000:
        return True
    for i in range(width):
        if intercepted(pages, port + i):
            return True
    return False


# Installs or removes the intercepts of `count` ports; one thread at a time.
cdef void intercept_ports(InterceptPages *pages, uint32_t first, uint32_t count, bint on) noexcept nogil


# Worker and host: wakes the one waiter of a word. The caller has published what it waits for, and fenced.
cdef inline bint intercept_wake(uint32_t *sleep) noexcept nogil:
    if load_relaxed32(sleep) and exchange32(sleep, 0):
        futex_wake(sleep, 1)
        return True
    return False


# Worker: the answer is written. Release: who sees the number sees the answer. Full fence: against the processor, which
# sets its sleep word and then looks at the number once more.
cdef inline void intercept_answer(InterceptPages *pages, uint32_t number) noexcept nogil:
    store_release32(&pages.vp.answered, number)
    fence_full()
    intercept_wake(&pages.vp.sleep)


# Worker: the line changed. Before the answer to the access that changed it, so that the processor sees the line as the
# access left it.
cdef inline void intercept_line(InterceptPages *pages, uint32_t number, bint high) noexcept nogil:
    store_release32(&pages.interrupts[number].line, high)
    if high:
        fence_full()
        intercept_wake(&pages.interrupts[number].sleep)


cdef inline uint32_t intercept_posted(const InterceptPages *pages) noexcept nogil:
    return load_acquire32(&pages.vp.posted)


# The child's side: its virtual processor. One thread at a time, but for vp_end and the waits for an interrupt, which
# are for one thread per line.

cdef enum VpStatus:
    VP_OK = 0
    VP_LOST = -1                     # the worker that the programme began with is gone; another may be there
    VP_TIMEOUT = -2
    VP_INTERRUPTED = -3              # a signal came
    VP_GONE = -4                     # the host is gone

ctypedef struct Vp:
    InterceptPages *pages
    uint32_t posted                  # our own copy of the sequence
    uint32_t gone
    # Of the programme that runs, from vp_begin or vp_resume on.
    uint32_t epoch
    int64_t deadline_ns              # CLOCK_MONOTONIC; < 0: none
    int status                       # VpStatus. Not VP_OK: every further access reads ones and does nothing
    Spinner spinner
    uint64_t accesses                # to any port; a REP instruction is one
    uint64_t intercepts              # of these, handed to the worker; a long string is several
    uint64_t doorbells               # wake-ups of a sleeping worker
    uint64_t blocking_waits

cdef void vp_init(Vp *vp, InterceptPages *pages) noexcept nogil
# Waits until a worker is there and nothing is outstanding; vp.epoch then names that worker. VP_LOST: none will come.
cdef int vp_begin(Vp *vp, int64_t deadline_ns) noexcept nogil
# Goes on with a programme that began with the worker of `epoch`.
cdef void vp_resume(Vp *vp, uint32_t epoch, int64_t deadline_ns) noexcept nogil
# width: 1, 2 or 4. Ones when nothing answers.
cdef uint32_t vp_in(Vp *vp, uint32_t port, uint32_t width) noexcept nogil
cdef void vp_out(Vp *vp, uint32_t port, uint32_t width, uint32_t value) noexcept nogil
# REP INS, REP OUTS between the port and guest memory at `address`; the elements done.
cdef uint64_t vp_string(Vp *vp, uint32_t port, uint32_t width, bint write, uint64_t address,
                        uint64_t count) noexcept nogil
cdef inline bint vp_line(const Vp *vp, uint32_t number) noexcept nogil:
    return load_acquire32(&vp.pages.interrupts[number].line) != 0
# Waits until the line is high; the limit against a worker that is lost or a host that is gone is as for an access.
# VP_OK, VP_LOST, VP_TIMEOUT, VP_INTERRUPTED (call again), VP_GONE. waits: counts those that blocked.
cdef int vp_interrupt(Vp *vp, uint32_t number, uint32_t epoch, Spinner *spinner, bint spins, int64_t deadline_ns,
                      uint64_t *waits) noexcept nogil
# Any thread: every wait of the processor ends with VP_GONE, now and later.
cdef void vp_end(Vp *vp) noexcept nogil


cdef class Intercepts:
    cdef readonly Region region
    cdef InterceptPages *pages
    cdef uint32_t current            # the epoch; the child may have written another into the pages
    cdef readonly dict ports         # name -> [(first port, count), ...]
