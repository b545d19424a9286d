// SPDX-License-Identifier: BSD-3-Clause
/*
 * What the machine allows: the same byte counts on a bare socket, a copy of memory.  Each function
 * returns the nanoseconds of `count` operations, or a negative errno.
 */
#include "wire.h"

/* Round trips with echo_peer(); `samples`, where given, takes the nanoseconds of each. */
int64_t bench_ping(int fd, uint32_t request, uint32_t reply, uint32_t count, uint64_t *samples)
{
    char message[256] = {0};
    int64_t start = now();
    int failed;

    if (request > sizeof(message) || reply > sizeof(message))
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        int64_t sent = samples ? now() : 0;

        failed = send_all(fd, message, request);
        if (!failed)
            failed = receive_all(fd, message, reply);
        if (failed)
            return failed;
        if (samples)
            samples[i] = (uint64_t)(now() - sent);
    }
    return now() - start;
}

/* One way: messages of `size` bytes to sink_peer(), `joined` of them in a send. */
int64_t bench_pipe(int fd, uint32_t size, uint32_t joined, uint32_t count)
{
    uint64_t total = (uint64_t)size * count;
    char *messages = calloc(joined, size);
    int64_t start = now();
    char done;
    int failed;

    if (!messages)
        return -ENOMEM;
    failed = send_all(fd, &total, sizeof(total));
    for (uint32_t left = count; left && !failed;) {
        uint32_t some = left < joined ? left : joined;

        failed = send_all(fd, messages, (size_t)some * size);
        left -= some;
    }
    if (!failed)
        failed = receive_all(fd, &done, 1);
    free(messages);
    return failed ? failed : now() - start;
}

int64_t bench_memcpy(void *to, const void *from, uint64_t size, uint32_t count)
{
    int64_t start = now();

    for (uint32_t i = 0; i < count; i++) {
        memcpy(to, from, size);
        __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
    }
    return now() - start;
}

/* The peer of bench_ping(). */
int echo_peer(int fd, uint32_t request, uint32_t reply)
{
    char message[256] = {0};

    if (request > sizeof(message) || reply > sizeof(message))
        return -EINVAL;
    for (;;) {
        if (receive_all(fd, message, request))
            return 0;
        if (send_all(fd, message, reply))
            return 0;
    }
}

/* The peer of bench_pipe(): takes each message with a receive of its own, says when it has all. */
int sink_peer(int fd, uint32_t size)
{
    char message[256];
    uint64_t left;
    char done = 1;

    if (size > sizeof(message))
        return -EINVAL;
    for (;;) {
        if (receive_all(fd, &left, sizeof(left)))
            return 0;
        while (left) {
            if (receive_all(fd, message, size))
                return 0;
            left -= size;
        }
        if (send_all(fd, &done, 1))
            return 0;
    }
}
