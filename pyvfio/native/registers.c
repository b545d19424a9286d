// SPDX-License-Identifier: BSD-3-Clause
/*
 * Access to the registers of a region by offset: a load or store where it is mapped, else a message
 * and its answer, where the region has a stream.
 *
 * What is neither (see window.c) is PYVFIO_MISSED, also where others have the stream just now.
 */

/* With PYVFIO_MISSED and PYVFIO_FAULTED, beyond every value of 32 bits */
#define PYVFIO_BEGUN (UINT64_C(1) << 34)  /* sent, or a part; the rest is not usual */
#define PYVFIO_WAITED (UINT64_C(1) << 35) /* done, the value is there; others are to be told */

static uint64_t pyvfio_failure_of(int status)
{
    switch (status) {
    case PYVFIO_DONE: return 0;
    case PYVFIO_CROWDED: return PYVFIO_WAITED;
    case PYVFIO_BUSY: return PYVFIO_MISSED;
    default: return PYVFIO_BEGUN;
    }
}

static int pyvfio_is_register(const struct pyvfio_window *window, uint64_t offset, unsigned width)
{
    return !(offset & (width - 1)) && offset < window->size && width <= window->size - offset;
}

static struct pyvfio_loaded pyvfio_ask(const struct pyvfio_window *window, uint64_t offset,
                                       unsigned width)
{
    struct pyvfio_loaded loaded = {0, PYVFIO_MISSED};

    if (window->reads && window->readable && pyvfio_is_register(window, offset, width))
        loaded.failure = pyvfio_failure_of(pyvfio_read_register(
            window->reads, window->region, offset, width, &loaded.value));
    return loaded;
}

static uint64_t pyvfio_tell(const struct pyvfio_window *window, uint64_t offset, unsigned width,
                            uint64_t value)
{
    uint32_t region = window->region;
    int status = PYVFIO_BUSY;

    if (!window->writable || !pyvfio_is_register(window, offset, width))
        return PYVFIO_MISSED;
    if (window->posts && !__atomic_load_n(window->posting_is_over, __ATOMIC_RELAXED))
        status = pyvfio_post_register(window->posts, region, offset, width, value,
                                      window->posting_is_over);
    else if (window->writes)
        status = pyvfio_write_register(window->writes, region, offset, width, value);
    return pyvfio_failure_of(status);
}

#define LOOKUP(bits)                                                                         \
    static struct pyvfio_loaded look_up##bits(const struct pyvfio_window *window,            \
                                              uint64_t offset)                               \
    {                                                                                        \
        struct pyvfio_loaded loaded = checked_load##bits(window, offset);                    \
                                                                                             \
        return loaded.failure == PYVFIO_MISSED ? pyvfio_ask(window, offset, bits / 8)        \
                                               : loaded;                                     \
    }

LOOKUP(8)
LOOKUP(16)
LOOKUP(32)
LOOKUP(64)

/* The value, and what failed. */
#define GET(bits)                                                                            \
    static uint64_t pyvfio_get##bits(const struct pyvfio_window *window, uint64_t offset)    \
    {                                                                                        \
        struct pyvfio_loaded loaded = look_up##bits(window, offset);                         \
                                                                                             \
        return loaded.value | loaded.failure;                                                \
    }

GET(8)
GET(16)
GET(32)

static struct pyvfio_loaded pyvfio_get64(const struct pyvfio_window *window, uint64_t offset)
{
    return look_up64(window, offset);
}

/* Returns 0 or what failed. */
#define PUT(bits)                                                                            \
    static uint64_t pyvfio_put##bits(const struct pyvfio_window *window, uint64_t offset,    \
                                     uint##bits##_t value)                                   \
    {                                                                                        \
        uint64_t failure = pyvfio_store##bits(window, offset, value);                        \
                                                                                             \
        return failure == PYVFIO_MISSED ? pyvfio_tell(window, offset, bits / 8, value)       \
                                        : failure;                                           \
    }

PUT(8)
PUT(16)
PUT(32)
PUT(64)
