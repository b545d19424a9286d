// SPDX-License-Identifier: BSD-3-Clause
/*
 * Access to the mapped areas of a region by offset: bounds, alignment and permission are checked
 * where the access is made, so that one call does it all.
 *
 * What the window does not hold (not mapped, not aligned, outside, not allowed) is PYVFIO_MISSED and
 * has touched nothing; the caller goes another way, or finds out what is wrong.
 */
#include <stdint.h>
#include <string.h>

struct pyvfio_area {
    uint64_t start;
    uint64_t end;
    uintptr_t address; /* of the byte at start */
};

struct pyvfio_window {
    uint64_t size;
    int readable;
    int writable;
    /* How registers that are not mapped are reached (registers.c).  A stream is NULL where C does
     * not; `of_python` is for who goes on with what it has begun. */
    struct pyvfio_stream *reads;
    struct pyvfio_stream *writes;
    struct pyvfio_stream *posts; /* instead of `writes`, until posting is over */
    const int *posting_is_over;
    uint32_t region;
    void *of_python;
    uint64_t count;
    struct pyvfio_area areas[];
};

/* Beyond every value of 32 bits, so that a load can return either. */
#define PYVFIO_MISSED (UINT64_C(1) << 32)
#define PYVFIO_FAULTED (UINT64_C(1) << 33)

struct pyvfio_loaded {
    uint64_t value;
    uint64_t failure; /* 0, PYVFIO_MISSED or PYVFIO_FAULTED */
};

/* Where size bytes at an offset are mapped; 0 where they are not, or not in one piece. */
static uintptr_t find_mapped(const struct pyvfio_window *window, uint64_t offset, uint64_t size)
{
    for (uint64_t i = 0; i < window->count; i++) {
        const struct pyvfio_area *area = &window->areas[i];

        if (offset >= area->start && offset < area->end)
            return size <= area->end - offset ? area->address + (offset - area->start) : 0;
    }
    return 0;
}

static uintptr_t find_register(const struct pyvfio_window *window, uint64_t offset, unsigned width)
{
    return offset & (width - 1) ? 0 : find_mapped(window, offset, width);
}

#define CHECKED_LOAD(bits)                                                                   \
    static struct pyvfio_loaded checked_load##bits(const struct pyvfio_window *window,       \
                                                   uint64_t offset)                          \
    {                                                                                        \
        uintptr_t address = find_register(window, offset, bits / 8);                         \
        struct pyvfio_loaded loaded = {0, 0};                                                \
                                                                                             \
        if (!address || !window->readable)                                                   \
            loaded.failure = PYVFIO_MISSED;                                                  \
        else if (guarded_load##bits(address, &loaded.value))                                 \
            loaded.failure = PYVFIO_FAULTED;                                                 \
        return loaded;                                                                       \
    }

CHECKED_LOAD(8)
CHECKED_LOAD(16)
CHECKED_LOAD(32)
CHECKED_LOAD(64)

/* Returns 0 or what failed. */
#define STORE(bits)                                                                          \
    static uint64_t pyvfio_store##bits(const struct pyvfio_window *window, uint64_t offset,  \
                                       uint##bits##_t value)                                 \
    {                                                                                        \
        uintptr_t address = find_register(window, offset, bits / 8);                         \
                                                                                             \
        if (!address || !window->writable)                                                   \
            return PYVFIO_MISSED;                                                            \
        return pyvfio_write##bits(address, value) ? PYVFIO_FAULTED : 0;                      \
    }

STORE(8)
STORE(16)
STORE(32)
STORE(64)

/* 64 bits in two accesses of 32; both halves are in one area, or nothing is touched. */
static struct pyvfio_loaded pyvfio_load64_halves(const struct pyvfio_window *window,
                                                 uint64_t offset, int high_first)
{
    struct pyvfio_loaded first, second;
    uint64_t ahead = high_first ? 4 : 0;

    if (!find_mapped(window, offset, 8))
        return (struct pyvfio_loaded){0, PYVFIO_MISSED};
    first = checked_load32(window, offset + ahead);
    if (first.failure)
        return first;
    second = checked_load32(window, offset + 4 - ahead);
    second.value = high_first ? first.value << 32 | second.value : second.value << 32 | first.value;
    return second;
}

static uint64_t pyvfio_store64_halves(const struct pyvfio_window *window, uint64_t offset,
                                      uint64_t value, int high_first)
{
    uint64_t ahead = high_first ? 4 : 0, failure;
    uint32_t low = (uint32_t)value, high = (uint32_t)(value >> 32);

    if (!find_mapped(window, offset, 8))
        return PYVFIO_MISSED;
    failure = pyvfio_store32(window, offset + ahead, high_first ? high : low);
    return failure ? failure
                   : pyvfio_store32(window, offset + 4 - ahead, high_first ? low : high);
}

/*
 * Copies of which each access of the device has one width, in ascending order.  Our side is plain
 * memory, aligned or not.
 */
#define COPIES(bits)                                                                         \
    static void copy_out##bits(char *to, uintptr_t from, uint64_t size)                      \
    {                                                                                        \
        for (uint64_t at = 0; at < size; at += bits / 8) {                                   \
            uint##bits##_t value = *(volatile uint##bits##_t *)(from + at);                  \
                                                                                             \
            memcpy(to + at, &value, sizeof(value));                                          \
        }                                                                                    \
    }                                                                                        \
                                                                                             \
    static void copy_in##bits(uintptr_t to, const char *from, uint64_t size)                 \
    {                                                                                        \
        for (uint64_t at = 0; at < size; at += bits / 8) {                                   \
            uint##bits##_t value;                                                            \
                                                                                             \
            memcpy(&value, from + at, sizeof(value));                                        \
            *(volatile uint##bits##_t *)(to + at) = value;                                   \
        }                                                                                    \
    }

COPIES(8)
COPIES(16)
COPIES(32)
COPIES(64)

/* Widths of our choice: bytes up to a multiple of 8, then 64 bits each, then bytes. */
static uint64_t bytes_ahead(uintptr_t address, uint64_t size)
{
    uint64_t ahead = -address & 7;

    return ahead < size ? ahead : size;
}

static void copy_out_widest(char *to, uintptr_t from, uint64_t size)
{
    uint64_t ahead = bytes_ahead(from, size);
    uint64_t behind = ahead + ((size - ahead) & ~UINT64_C(7));

    copy_out8(to, from, ahead);
    copy_out64(to + ahead, from + ahead, behind - ahead);
    copy_out8(to + behind, from + behind, size - behind);
}

static void copy_in_widest(uintptr_t to, const char *from, uint64_t size)
{
    uint64_t ahead = bytes_ahead(to, size);
    uint64_t behind = ahead + ((size - ahead) & ~UINT64_C(7));

    copy_in8(to, from, ahead);
    copy_in64(to + ahead, from + ahead, behind - ahead);
    copy_in8(to + behind, from + behind, size - behind);
}

static void copy_out(char *to, uintptr_t from, uint64_t size, unsigned width)
{
    switch (width) {
    case 0: copy_out_widest(to, from, size); break;
    case 1: copy_out8(to, from, size); break;
    case 2: copy_out16(to, from, size); break;
    case 4: copy_out32(to, from, size); break;
    case 8: copy_out64(to, from, size); break;
    }
}

static void copy_in(uintptr_t to, const char *from, uint64_t size, unsigned width)
{
    switch (width) {
    case 0: copy_in_widest(to, from, size); break;
    case 1: copy_in8(to, from, size); break;
    case 2: copy_in16(to, from, size); break;
    case 4: copy_in32(to, from, size); break;
    case 8: copy_in64(to, from, size); break;
    }
}

/* Offset and size are multiples of the width, which is 0 for any.  Returns 0 or what failed. */
static uint64_t pyvfio_load_block(const struct pyvfio_window *window, uint64_t offset,
                                  char *target, uint64_t size, unsigned width)
{
    uintptr_t from = find_mapped(window, offset, size);

    if (!from || !window->readable)
        return PYVFIO_MISSED;
    if (ACCESS_FAULTS())
        return PYVFIO_FAULTED;
    GUARD_ON();
    copy_out(target, from, size, width);
    GUARD_OFF();
    AFTER_LOAD();
    return 0;
}

static uint64_t pyvfio_store_block(const struct pyvfio_window *window, uint64_t offset,
                                   const char *source, uint64_t size, unsigned width)
{
    uintptr_t to = find_mapped(window, offset, size);

    if (!to || !window->writable)
        return PYVFIO_MISSED;
    if (ACCESS_FAULTS())
        return PYVFIO_FAULTED;
    BEFORE_STORE();
    GUARD_ON();
    copy_in(to, source, size, width);
    GUARD_OFF();
    return 0;
}
