// SPDX-License-Identifier: BSD-3-Clause
/*
 * A device's DMA to and from memory of its client that is mapped here: found and copied in one call.
 *
 * Only what is usual: the range is within one map that allows it, the device is bus master, and
 * nothing hinders it.  Everything else is left to the general way, which knows everything
 * (pyvfio/server/guest_memory.py); nothing has been done then, or a part of what is done again.
 *
 * A copy holds the lock for reading, whoever changes something for writing: when that is done, no copy
 * is under way that does not know.
 */
#include <pthread.h>
#include <stdlib.h>

#define PYVFIO_DMA_MASTER 4 /* in the first byte of the command register */

struct pyvfio_dma_map {
    uint64_t first;
    uint64_t last; /* so that a map can end with the address space */
    uintptr_t memory;
    uint32_t flags; /* of DMA_MAP: 1 may be read, 2 written */
};

struct pyvfio_dma {
    pthread_rwlock_t lock;
    const volatile uint8_t *command; /* the register, which is its owner's */
    uint32_t stopped;
    uint32_t logged; /* so writes go the general way */
    size_t count;
    size_t room;
    struct pyvfio_dma_map *map; /* in order, none overlaps another */
};

enum { PYVFIO_DMA_READ = 1, PYVFIO_DMA_WRITE = 2 };

static void pyvfio_dma_free(struct pyvfio_dma *dma)
{
    pthread_rwlock_destroy(&dma->lock);
    free(dma->map);
    free(dma);
}

/* NULL where there is no memory. */
static struct pyvfio_dma *pyvfio_dma_new(const uint8_t *command)
{
    struct pyvfio_dma *dma = calloc(1, sizeof(*dma));
    pthread_rwlockattr_t kind;

    if (!dma)
        return NULL;
    pthread_rwlockattr_init(&kind);
#ifdef __GLIBC__ /* elsewhere copies without end would not keep a change waiting anyway */
    pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(&dma->lock, &kind);
    pthread_rwlockattr_destroy(&kind);
    dma->command = command;
    return dma;
}

/* How many maps begin at an address or before it. */
static size_t dma_count_up_to(const struct pyvfio_dma *dma, uint64_t address)
{
    size_t low = 0, high = dma->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (dma->map[middle].first <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int dma_make_room(struct pyvfio_dma *dma)
{
    size_t room = dma->room ? 2 * dma->room : 64;
    struct pyvfio_dma_map *map;

    if (dma->count < dma->room)
        return 0;
    map = realloc(dma->map, room * sizeof(*map));
    if (!map)
        return -ENOMEM;
    dma->map = map;
    dma->room = room;
    return 0;
}

/* Add a map, which overlaps none and has a size.  Returns 0 or -ENOMEM. */
static int pyvfio_dma_insert(struct pyvfio_dma *dma, uint64_t first, uint64_t last,
                             uintptr_t memory, uint32_t flags)
{
    int result;

    pthread_rwlock_wrlock(&dma->lock);
    result = dma_make_room(dma);
    if (!result) {
        size_t at = dma_count_up_to(dma, first);

        memmove(&dma->map[at + 1], &dma->map[at], (dma->count - at) * sizeof(*dma->map));
        dma->map[at] = (struct pyvfio_dma_map){first, last, memory, flags};
        dma->count++;
    }
    pthread_rwlock_unlock(&dma->lock);
    return result;
}

/* Forget the maps that begin in a range; when this is done nothing reaches for their memory. */
static void pyvfio_dma_remove(struct pyvfio_dma *dma, uint64_t first, uint64_t last)
{
    size_t start, end;

    pthread_rwlock_wrlock(&dma->lock);
    start = first ? dma_count_up_to(dma, first - 1) : 0;
    end = dma_count_up_to(dma, last);
    if (end > start) {
        memmove(&dma->map[start], &dma->map[end], (dma->count - end) * sizeof(*dma->map));
        dma->count -= end - start;
    }
    pthread_rwlock_unlock(&dma->lock);
}

static void dma_set(struct pyvfio_dma *dma, uint32_t *flag, int on)
{
    pthread_rwlock_wrlock(&dma->lock);
    *flag = !!on;
    pthread_rwlock_unlock(&dma->lock);
}

static void pyvfio_dma_stop(struct pyvfio_dma *dma, int stopped)
{
    dma_set(dma, &dma->stopped, stopped);
}

static void pyvfio_dma_log(struct pyvfio_dma *dma, int logged)
{
    dma_set(dma, &dma->logged, logged);
}

/* Where a range is in this process; 0 where it is not all in one map with such a flag. */
static uintptr_t dma_find(const struct pyvfio_dma *dma, uint64_t address, size_t size,
                          uint32_t need)
{
    size_t count = dma_count_up_to(dma, address);
    const struct pyvfio_dma_map *map;

    if (!count || !size)
        return 0;
    map = &dma->map[count - 1];
    if (address > map->last || size - 1 > map->last - address || !(map->flags & need))
        return 0;
    return map->memory + (uintptr_t)(address - map->first);
}

/* Returns 0, or 1 where it has to go the general way. */
static int dma_copy(struct pyvfio_dma *dma, uint64_t address, uintptr_t ours, size_t size,
                    uint32_t need)
{
    uintptr_t memory = 0;
    int failed = 1;

    pthread_rwlock_rdlock(&dma->lock);
    if (*dma->command & PYVFIO_DMA_MASTER && !dma->stopped &&
        !(dma->logged && need == PYVFIO_DMA_WRITE))
        memory = dma_find(dma, address, size, need);
    if (memory && need == PYVFIO_DMA_READ)
        failed = pyvfio_copy(ours, memory, size) != 0;
    else if (memory)
        failed = pyvfio_copy(memory, ours, size) != 0;
    pthread_rwlock_unlock(&dma->lock);
    return failed;
}

static int pyvfio_dma_read(struct pyvfio_dma *dma, uint64_t address, void *to, size_t size)
{
    return dma_copy(dma, address, (uintptr_t)to, size, PYVFIO_DMA_READ);
}

static int pyvfio_dma_write(struct pyvfio_dma *dma, uint64_t address, const void *from,
                            size_t size)
{
    return dma_copy(dma, address, (uintptr_t)from, size, PYVFIO_DMA_WRITE);
}
