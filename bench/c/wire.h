// SPDX-License-Identifier: BSD-3-Clause
/*
 * vfio-user as the baselines speak it: the messages of the specification that they use, blocking
 * sockets, no more than one system call each way where the kernel allows.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Messages follow each other in a buffer at any address. */
#define PACKED __attribute__((packed))

enum command {
    VERSION = 1,
    DMA_MAP = 2,
    DMA_UNMAP = 3,
    DEVICE_GET_INFO = 4,
    DEVICE_GET_REGION_INFO = 5,
    DEVICE_GET_IRQ_INFO = 7,
    DEVICE_SET_IRQS = 8,
    REGION_READ = 9,
    REGION_WRITE = 10,
    DEVICE_RESET = 13,
    REGION_WRITE_MULTI = 15,
};

enum { COMMAND = 0x0, REPLY = 0x1, NO_REPLY = 0x10, ERROR = 0x20, TYPE = 0xf };
enum { RESETTABLE = 1, PCI_DEVICE = 2 };

struct header {
    uint16_t id;
    uint16_t command;
    uint32_t size;
    uint32_t flags;
    uint32_t error;
} PACKED;

struct region_access {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
} PACKED;

struct dma_map {
    uint32_t argsz;
    uint32_t flags;
    uint64_t offset;
    uint64_t address;
    uint64_t size;
} PACKED;

struct dma_unmap {
    uint32_t argsz;
    uint32_t flags;
    uint64_t address;
    uint64_t size;
} PACKED;

struct device_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t regions;
    uint32_t irqs;
} PACKED;

struct region_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t cap_offset;
    uint64_t size;
    uint64_t offset;
} PACKED;

struct irq_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
} PACKED;

/* A message of 36 bytes: a 4-byte REGION_WRITE, and the reply to a 4-byte REGION_READ. */
struct register_message {
    struct header header;
    struct region_access access;
    uint32_t value;
} PACKED;

/* A message of 32 bytes: a REGION_READ, and the reply to a REGION_WRITE. */
struct access_message {
    struct header header;
    struct region_access access;
} PACKED;

enum { MAX_DATA = 1 << 20, IN_FLIGHT = 64 };

static inline int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* All of it, or a negative errno. */
static inline int send_all(int fd, const void *data, size_t size)
{
    const char *at = data;

    while (size) {
        ssize_t done = send(fd, at, size, MSG_NOSIGNAL);

        if (done < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

static inline int receive_all(int fd, void *data, size_t size)
{
    char *at = data;

    while (size) {
        ssize_t done = recv(fd, at, size, 0);

        if (done < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (!done)
            return -ECONNRESET;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

#endif
