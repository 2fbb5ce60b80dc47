# Memory that the host shares with one worker process: one block for each IDE channel, through which the VSP hands a
# request to the IDE emulator and the emulator asks for the media. Strict alternation, so that two sequence words are
# all the synchronisation: the host writes its half and then `posted`; the worker writes its half and then
# `answered` = the posted number it answers. One command at a time per channel, as on the cable.
#
# A worker whose VM has disks that the guest reaches through its ports has a second controller. Its channels ask for the
# media through blocks of their own, the other way round: the worker posts, the host answers.
#
# The host reads every field of the worker's half once, into private memory, and believes none of it unchecked.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from hvcore.hypervisor.intercept cimport InterceptPages
from hvcore.linux.atomics cimport exchange32, load_relaxed32
from hvcore.linux.syscalls cimport futex_wake
from hvcore.metrics.counters cimport Counters

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_HANDOVER
    #define HV_HANDOVER
    #define HV_HANDOVER_SEGMENTS 72            /* 256 KiB that starts anywhere in a page, and some */
    #define HV_HANDOVER_PIO 65536
    #define HV_HANDOVER_TRACE (65 * 4096)               /* 8192 events: a 4 KiB read word by word makes 4128 */
    #define HV_GUEST_MEDIA_SEGMENTS 1024       /* IDE_SEGMENTS */
    typedef struct { uint32_t address, bytes; } hv_segment;
    typedef struct {                            /* written by the host */
        uint32_t posted, operation;
        uint32_t kind, mode, drive, sectors;
        uint64_t lba, trace_id;
        int32_t media_status;
        uint32_t segment_count;
        hv_segment segments[HV_HANDOVER_SEGMENTS];
    } hv_handover_request;
    typedef struct {                            /* written by the worker */
        uint32_t answered, operation;
        uint32_t kind, drive, sectors, dma;
        uint64_t lba;
        uint32_t ata_status, ata_error;
        uint32_t segment_count, reserved;
        uint64_t port_accesses, bytes_copied;
        hv_segment segments[HV_HANDOVER_SEGMENTS];
    } hv_handover_answer;
    typedef struct {
        hv_handover_request request;
        uint8_t pad1[2048 - sizeof(hv_handover_request)];
        hv_handover_answer answer;
        uint8_t pad2[2048 - sizeof(hv_handover_answer)];
        uint8_t pio[2 * HV_HANDOVER_PIO];      /* the drives' PIO buffers */
    } hv_handover_channel;
    typedef struct {                            /* a channel that the guest drives */
        uint32_t posted, kind, drive, sectors;  /* by the worker */
        uint64_t lba, sequence;
        uint32_t dma, buffer_offset, tail_bytes, segment_count;
        uint8_t pad1[16];
        uint32_t answered;                      /* by the host */
        int32_t status;
        uint8_t pad2[4096 - 72];
        hv_segment segments[HV_GUEST_MEDIA_SEGMENTS];
        uint8_t pio[2 * HV_HANDOVER_PIO];
    } hv_guest_media;
    typedef struct {
        uint32_t worker_sleep;                  /* 1: the worker sleeps, on this word or on that of its guest's pages */
        uint32_t pad1[15];
        uint32_t host_sleep;                    /* 1: the host sleeps on the worker's doorbell */
        uint32_t pad2[15];
        uint32_t stop;                          /* the host ends the worker's loop */
        uint32_t pad3[15];
        uint8_t pad4[4096 - 192];
        uint8_t trace[HV_HANDOVER_TRACE];      /* the worker's trace ring */
        hv_handover_channel channels[2];
        hv_guest_media guest_media[2];
        uint8_t guest_counters[4 * 256];       /* hv_counters of each drive that the guest drives, by the worker */
    } hv_handover;
    _Static_assert(offsetof(hv_handover, channels) == 4096 + HV_HANDOVER_TRACE, "hand-over memory");
    _Static_assert(sizeof(hv_handover_channel) == 4096 + 2 * HV_HANDOVER_PIO, "hand-over memory");
    _Static_assert(offsetof(hv_guest_media, answered) == 64, "hand-over memory");
    _Static_assert(offsetof(hv_guest_media, segments) == 4096, "hand-over memory");
    _Static_assert(offsetof(hv_handover, guest_counters) % 64 == 0, "hand-over memory");
    #endif
    """
    enum:
        HANDOVER_SEGMENTS "HV_HANDOVER_SEGMENTS"
        HANDOVER_PIO "HV_HANDOVER_PIO"
    ctypedef struct Segment "hv_segment":
        uint32_t address
        uint32_t bytes
    ctypedef struct HandOverRequest "hv_handover_request":
        uint32_t posted
        uint32_t operation
        uint32_t kind
        uint32_t mode
        uint32_t drive
        uint32_t sectors
        uint64_t lba
        uint64_t trace_id
        int32_t media_status
        uint32_t segment_count
        Segment[72] segments
    ctypedef struct HandOverAnswer "hv_handover_answer":
        uint32_t answered
        uint32_t operation
        uint32_t kind
        uint32_t drive
        uint32_t sectors
        uint32_t dma
        uint64_t lba
        uint32_t ata_status
        uint32_t ata_error
        uint32_t segment_count
        uint64_t port_accesses
        uint64_t bytes_copied
        Segment[72] segments
    ctypedef struct HandOverChannel "hv_handover_channel":
        HandOverRequest request
        HandOverAnswer answer
        uint8_t[131072] pio
    ctypedef struct GuestMedia "hv_guest_media":
        uint32_t posted
        uint32_t kind                # IdeMediaKind
        uint32_t drive               # 0, 1 on the channel
        uint32_t sectors
        uint64_t lba
        uint64_t sequence            # of the drive's commands, for the trace
        uint32_t dma                 # 1: into or out of `segments` of guest memory; 0: the drive's PIO buffer
        uint32_t buffer_offset
        uint32_t tail_bytes          # of the last sector, that a read drops
        uint32_t segment_count
        uint32_t answered
        int32_t status               # DiskStatus
        Segment[1024] segments
        uint8_t[131072] pio
    ctypedef struct HandOver "hv_handover":
        uint32_t worker_sleep
        uint32_t host_sleep
        uint32_t stop
        uint8_t[266240] trace
        HandOverChannel[2] channels
        GuestMedia[2] guest_media
        uint8_t[1024] guest_counters
    enum:
        HANDOVER_ANSWER_HEADER "offsetof(hv_handover_answer, segments)"
        HANDOVER_BYTES "sizeof(hv_handover)"
        HANDOVER_TRACE_BYTES "HV_HANDOVER_TRACE"
        GUEST_MEDIA_SEGMENTS "HV_GUEST_MEDIA_SEGMENTS"
        GUEST_MEDIA_HEADER "offsetof(hv_guest_media, answered)"

cdef enum HandOverOperation:
    HANDOVER_COMMAND = 1         # host: run this request
    HANDOVER_MEDIA_DONE = 2      # host: media_status
    HANDOVER_MEDIA = 3           # worker: kind, drive, lba, sectors; dma: segments, else the PIO buffer
    HANDOVER_RESULT = 4          # worker: ATA status and error, what it cost


cdef inline Counters *guest_counters(HandOver *shared, uint32_t place) noexcept nogil:
    """Of the drive at that place, 0 to 3."""
    return <Counters *> &shared.guest_counters[place * sizeof(Counters)]


cdef inline bint handover_wake(HandOver *shared, InterceptPages *pages) noexcept nogil:
    """Host: wakes a sleeping worker; whether it slept. What it is to see is published, and fenced.

    A worker with a guest sleeps on the word in the guest's pages, which the child wakes too. Its own flag says whether
    it sleeps, because the child may have written anything there; a child that spoils the word holds up its own VM's
    emulator, no more.
    """
    if not load_relaxed32(&shared.worker_sleep) or not exchange32(&shared.worker_sleep, 0):
        return False
    if pages == NULL:
        futex_wake(&shared.worker_sleep, 1)
    else:
        exchange32(&pages.worker_sleep, 0)
        futex_wake(&pages.worker_sleep, 1)
    return True
