// SPDX-License-Identifier: BSD-3-Clause
/*
 * The C reference client: a plain blocking vfio-user client, one thread, one send and one receive
 * for a request.  Each bench_ function returns the nanoseconds of `count` operations, or a negative
 * errno; EPROTO is an answer that does not go with the request.
 */
#include "wire.h"

static const char CAPABILITIES[] =
    "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";

static struct header header_of(uint16_t id, enum command command, size_t size, uint32_t flags)
{
    return (struct header){id, (uint16_t)command, (uint32_t)size, flags, 0};
}

/* 0 where `reply` answers `request` with `size` bytes in all. */
static int check_reply(const struct header *reply, const struct header *request, size_t size)
{
    if (reply->id != request->id || reply->command != request->command ||
        (reply->flags & TYPE) != REPLY)
        return -EPROTO;
    if (reply->flags & ERROR)
        return reply->error ? -(int)reply->error : -EIO;
    return reply->size == size ? 0 : -EPROTO;
}

/* Receive a reply of `size` bytes with one call, where they come in one piece. */
static int receive_reply(int fd, void *reply, const struct header *request, size_t size)
{
    struct header *header = reply;
    ssize_t done = recv(fd, reply, size, 0);
    int failed;

    if (done <= 0)
        return done ? -errno : -ECONNRESET;
    if ((size_t)done < sizeof(*header)) {
        failed = receive_all(fd, (char *)reply + done, sizeof(*header) - (size_t)done);
        if (failed)
            return failed;
        done = sizeof(*header);
    }
    failed = check_reply(header, request, size);
    if (failed)
        return failed;
    return receive_all(fd, (char *)reply + done, size - (size_t)done);
}

static int exchange(int fd, const void *request, size_t request_size, void *reply,
                    size_t reply_size)
{
    int failed = send_all(fd, request, request_size);

    return failed ? failed : receive_reply(fd, reply, request, reply_size);
}

/* VERSION; returns the largest count of data bytes that the server takes, or a negative errno. */
static int64_t negotiate(int fd)
{
    struct {
        struct header header;
        uint16_t major, minor;
        char json[4096];
    } message = {0};
    struct header request;
    size_t size = sizeof(message.header) + 4 + sizeof(CAPABILITIES);
    const char *found;
    int64_t most = MAX_DATA;
    int failed;

    request = header_of(1, VERSION, size, COMMAND);
    message.header = request;
    memcpy(message.json, CAPABILITIES, sizeof(CAPABILITIES));
    failed = send_all(fd, &message, size);
    if (!failed)
        failed = receive_all(fd, &message.header, sizeof(message.header));
    if (failed)
        return failed;
    if (message.header.size < sizeof(message.header) + 4 || message.header.size >= sizeof(message))
        return -EPROTO;
    failed = check_reply(&message.header, &request, message.header.size);
    if (!failed)
        failed = receive_all(fd, &message.major, message.header.size - sizeof(message.header));
    if (failed)
        return failed;
    message.json[message.header.size - sizeof(message.header) - 4] = 0;
    found = strstr(message.json, "\"max_data_xfer_size\"");
    if (found && (found = strchr(found, ':')))
        most = strtoll(found + 1, NULL, 10);
    if (message.major || most <= 0)
        return -EPROTO;
    return most < MAX_DATA ? most : MAX_DATA;
}

/* DEVICE_GET_INFO: 0 where the server has a PCI device. */
static int check_device(int fd)
{
    struct {
        struct header header;
        struct device_info info;
    } request = {.info.argsz = sizeof(struct device_info)}, reply;
    int failed;

    request.header = header_of(2, DEVICE_GET_INFO, sizeof(request), COMMAND);
    failed = exchange(fd, &request, sizeof(request), &reply, sizeof(reply));
    if (failed)
        return failed;
    return reply.info.flags & PCI_DEVICE ? 0 : -ENODEV;
}

/* Agree on a version; returns the most bytes of data in a message, or a negative errno. */
int64_t bench_open(int fd)
{
    int64_t most = negotiate(fd);
    int failed = most < 0 ? (int)most : check_device(fd);

    return failed ? failed : most;
}

/* 4-byte reads, one after the other; `samples`, where given, takes the nanoseconds of each. */
int64_t bench_read32(int fd, uint32_t region, uint64_t offset, uint32_t count, uint64_t *samples)
{
    struct access_message request = {.access = {offset, region, 4}};
    struct register_message reply;
    int64_t start = now();

    for (uint32_t i = 0; i < count; i++) {
        int64_t sent = samples ? now() : 0;
        int failed;

        request.header = header_of((uint16_t)i, REGION_READ, sizeof(request), COMMAND);
        failed = exchange(fd, &request, sizeof(request), &reply, sizeof(reply));
        if (failed)
            return failed;
        if (reply.access.offset != offset || reply.access.region != region ||
            reply.access.count != 4)
            return -EPROTO;
        if (samples)
            samples[i] = (uint64_t)(now() - sent);
    }
    return now() - start;
}

/* 4-byte writes, each waited for. */
int64_t bench_write32(int fd, uint32_t region, uint64_t offset, uint32_t count)
{
    struct register_message request = {.access = {offset, region, 4}};
    struct access_message reply;
    int64_t start = now();

    for (uint32_t i = 0; i < count; i++) {
        int failed;

        request.value = i;
        request.header = header_of((uint16_t)i, REGION_WRITE, sizeof(request), COMMAND);
        failed = exchange(fd, &request, sizeof(request), &reply, sizeof(reply));
        if (failed)
            return failed;
    }
    return now() - start;
}

/* Posted 4-byte writes, `joined` messages in a send; then one read, which comes after all. */
int64_t bench_posted32(int fd, uint32_t region, uint64_t offset, uint32_t joined, uint32_t count)
{
    struct register_message *messages = calloc(joined, sizeof(*messages));
    int64_t start = now(), fence;
    int failed = 0;

    if (!messages)
        return -ENOMEM;
    for (uint32_t sent = 0; sent < count && !failed;) {
        uint32_t some = count - sent < joined ? count - sent : joined;

        for (uint32_t i = 0; i < some; i++) {
            messages[i].access = (struct region_access){offset, region, 4};
            messages[i].value = sent + i;
            messages[i].header = header_of((uint16_t)(sent + i), REGION_WRITE, sizeof(*messages),
                                           COMMAND | NO_REPLY);
        }
        failed = send_all(fd, messages, some * sizeof(*messages));
        sent += some;
    }
    free(messages);
    if (failed)
        return failed;
    fence = bench_read32(fd, region, offset, 1, NULL);
    return fence < 0 ? fence : now() - start;
}

/* 4-byte writes that are answered, 64 of them under way at a time. */
int64_t bench_in_flight32(int fd, uint32_t region, uint64_t offset, uint32_t count)
{
    struct register_message request = {.access = {offset, region, 4}};
    struct access_message replies[IN_FLIGHT];
    uint32_t sent = 0, answered = 0;
    int64_t start = now();
    size_t rest = 0;

    while (answered < count) {
        ssize_t some;
        size_t whole;
        int failed;

        for (; sent < count && sent - answered < IN_FLIGHT; sent++) {
            request.value = sent;
            request.header = header_of((uint16_t)sent, REGION_WRITE, sizeof(request), COMMAND);
            failed = send_all(fd, &request, sizeof(request));
            if (failed)
                return failed;
        }
        some = recv(fd, (char *)replies + rest, sizeof(replies) - rest, 0);
        if (some <= 0)
            return some ? -errno : -ECONNRESET;
        rest += (size_t)some;
        whole = rest / sizeof(*replies);
        for (size_t i = 0; i < whole; i++, answered++) {
            request.header = header_of((uint16_t)answered, REGION_WRITE, sizeof(request),
                                       COMMAND);
            failed = check_reply(&replies[i].header, &request.header, sizeof(*replies));
            if (failed)
                return failed;
        }
        rest -= whole * sizeof(*replies);
        memmove(replies, replies + whole, rest);
    }
    return now() - start;
}

/* One read of at most `size` bytes straight into `data`. */
static int read_chunk(int fd, uint32_t region, uint64_t offset, uint32_t size, char *data)
{
    struct access_message request = {.access = {offset, region, size}}, head;
    struct iovec parts[2] = {{&head, sizeof(head)}, {data, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    size_t got = 0;
    int failed;

    request.header = header_of(1, REGION_READ, sizeof(request), COMMAND);
    failed = send_all(fd, &request, sizeof(request));
    while (!failed && got < sizeof(head)) {
        ssize_t some = recvmsg(fd, &message, 0);

        if (some <= 0)
            return some ? -errno : -ECONNRESET;
        got += (size_t)some;
        if (got < sizeof(head))
            parts[0] = (struct iovec){(char *)&head + got, sizeof(head) - got};
        if (got >= sizeof(head.header))
            failed = check_reply(&head.header, &request.header, sizeof(head) + size);
    }
    if (failed)
        return failed;
    return receive_all(fd, data + (got - sizeof(head)), size - (got - sizeof(head)));
}

/* `size` bytes of a region into `data`, in chunks that the server takes. */
int64_t bench_read_bulk(int fd, uint32_t region, uint64_t offset, uint64_t size, uint32_t chunk,
                        char *data, uint32_t count)
{
    int64_t start = now();

    for (uint32_t i = 0; i < count; i++)
        for (uint64_t done = 0; done < size;) {
            uint32_t some = size - done < chunk ? (uint32_t)(size - done) : chunk;
            int failed = read_chunk(fd, region, offset + done, some, data + done);

            if (failed)
                return failed;
            done += some;
        }
    return now() - start;
}

static int map_page(int fd, int memory, uint64_t page, uint64_t iova, uint64_t offset)
{
    struct {
        struct header header;
        struct dma_map map;
    } request = {.map = {sizeof(struct dma_map), 3, offset, iova, page}};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = {0};
    struct iovec part = {&request, sizeof(request)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space,
                             .msg_controllen = sizeof(control.space)};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    struct header reply;
    ssize_t sent;

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &memory, sizeof(int));
    request.header = header_of(1, DMA_MAP, sizeof(request), COMMAND);
    sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent != sizeof(request))
        return sent < 0 ? -errno : -EIO;
    return receive_reply(fd, &reply, &request.header, sizeof(reply));
}

static int unmap_page(int fd, uint64_t page, uint64_t iova)
{
    struct {
        struct header header;
        struct dma_unmap unmap;
    } request = {.unmap = {sizeof(struct dma_unmap), 0, iova, page}}, reply;

    request.header = header_of(1, DMA_UNMAP, sizeof(request), COMMAND);
    return exchange(fd, &request, sizeof(request), &reply, sizeof(reply));
}

/* `count` pages of a file are mapped from `iova` on, each waited for, and unmapped again. */
int64_t bench_map_and_unmap(int fd, int memory, uint64_t page, uint64_t iova, uint32_t count)
{
    int64_t start = now();
    int failed = 0;

    for (uint32_t i = 0; i < count && !failed; i++)
        failed = map_page(fd, memory, page, iova + i * page, i * page);
    for (uint32_t i = 0; i < count && !failed; i++)
        failed = unmap_page(fd, page, iova + i * page);
    return failed ? failed : now() - start;
}
